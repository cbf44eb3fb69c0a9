/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The heap's check finds what it is there to find: each invariant is broken by hand, once. And the
 * numbers of a walk, over a heap in which all kinds of objects are.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "allocator/check.h"
#include "allocator/walk.h"
#include "hand_heap.h"

#define A 1u
#define B 2u
#define REGION PANDO__OBJECT_SHARED(PANDO__HOLDER_REGION)

static struct hand h;

/* Span 0 is A's with two slabs and a large object over its end; spans 2 and 3 are orphans. */
static int setup(void **state)
{
	(void)state;
	assert_true(hand_map(&h, -1));
	hand_client(&h, A - 1, 5, PANDO__CLIENT_LIVE);
	hand_client(&h, B - 1, 5, PANDO__CLIENT_LIVE);
	hand_own(&h, 0, A, PANDO__SPAN_OWNED);
	hand_own(&h, 1, A, PANDO__SPAN_OWNED);
	hand_slab(&h, 0, 0, A, 1);
	hand_slab(&h, 0, 1, A, 10); /* 384 bytes */
	*hand_object(&h, 0, 0, 1, 0) = PANDO__OBJECT_LIVE;
	*hand_object(&h, 0, 0, 1, 1) = PANDO__OBJECT_CACHED;
	*hand_object(&h, 0, 0, 1, 2) = REGION;
	*hand_object(&h, 0, 1, 10, 3) = PANDO__OBJECT_SHARED(B);
	*hand_object(&h, 0, 1, 10, 4) = PANDO__OBJECT_REMOTE;
	hand_span(&h, 0)->held = 1;
	hand_span(&h, 0)->remote = 2;
	h.view.clients[A - 1].remote = 1;
	hand_large(&h, 0, 63 * PANDO__PAGE_GRANULES, 200, A, PANDO__OBJECT_LIVE);
	hand_own(&h, 2, PANDO__OWNER_ORPHAN, PANDO__SPAN_ORPHAN);
	hand_slab(&h, 2, 4, PANDO__OWNER_ORPHAN, 1);
	*hand_object(&h, 2, 4, 1, 7) = REGION;
	hand_large(&h, 2, 0, 100, PANDO__OWNER_ORPHAN, REGION);
	*hand_word(&h, 2, 100) = PANDO__OBJECT_REMOTE; /* a second one in the same page */
	for (unsigned int i = 0; i < PANDO__LENGTH_WORDS; i++)
		*hand_word(&h, 2, 101 + i) = PANDO__OBJECT_LENGTH(40, i);
	hand_pages(&h, 2, 1, 1,
		   PANDO__PAGE_ENTRY(PANDO__OWNER_ORPHAN, PANDO__CLASS_LARGE, PANDO__PAGE_LOOSE));
	hand_span(&h, 2)->remote = 1;
	assert_int_equal(pando__heap_verify(&h.view, h.all + HAND_SLOTS_AT, 1), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	hand_unmap(&h);
	return 0;
}

static void broken(const char *what)
{
	int rc = pando__heap_verify(&h.view, h.all + HAND_SLOTS_AT, 2);

	if (rc != -EUCLEAN)
		fail_msg("found nothing (%d) of: %s", rc, what);
	if (!strstr(pando_strerror_last(), what))
		fail_msg("\"%s\" does not say: %s", pando_strerror_last(), what);
}

/* Sets *at for the time of one check. */
#define BREAK(at, value, what)                                                                     \
	do {                                                                                       \
		__typeof__(*(at)) was = *(at);                                                     \
		*(at) = (__typeof__(was))(value);                                                  \
		broken(what);                                                                      \
		*(at) = was;                                                                       \
	} while (0)

static void slabs(void **state)
{
	uint32_t *entries = &h.view.page_table[h.first * PANDO__SPAN_PAGES];

	(void)state;
	BREAK(hand_word(&h, 0, PANDO__SLAB_GRANULES + 1), PANDO__OBJECT_LIVE, "no object begins");
	BREAK(hand_word(&h, 0, 2 * PANDO__SLAB_GRANULES - 4), PANDO__OBJECT_LIVE,
	      "no object begins");
	BREAK(hand_object(&h, 0, 0, 1, 5), 0x10, "means nothing");
	BREAK(&entries[3], PANDO__PAGE_ENTRY(A, 2, 0), "another entry");
	BREAK(&entries[3], 0, "another entry");
	BREAK(&entries[3], PANDO__PAGE_ENTRY(B, 1, 0), "names another owner");
	BREAK(&entries[20], PANDO__PAGE_ENTRY(A, 40, 0), "no class");
	BREAK(&hand_span(&h, 0)->pages, 1ull << 63, "without its bit");
	BREAK(hand_word(&h, 0, 3 * PANDO__SLAB_GRANULES), PANDO__OBJECT_LIVE, "in no use");
}

static void holders(void **state)
{
	struct pando__intent *in = hand_intents(&h, A - 1);

	(void)state;
	BREAK(hand_object(&h, 0, 1, 10, 3), PANDO__OBJECT_SHARED(7), "client that is not there");
	BREAK(hand_object(&h, 0, 1, 10, 3), PANDO__OBJECT_SHARED(5000), "not there");
	BREAK(&hand_span(&h, 0)->held, 0, "not `held`");
	BREAK(&pando__ledger_client(h.ledger, A - 1)->word,
	      PANDO__CLIENT_WORD(6, PANDO__CLIENT_FREE), "span of a client that is not there");
	/* Who is just being given something is allowed for. */
	hand_span(&h, 0)->held = 0;
	in[9].what = PANDO__INTENT(PANDO__INTENT_TRANSFER,
				   hand_offset(&h, 0, PANDO__SLAB_GRANULES + 3 * 12));
	assert_int_equal(pando__heap_verify(&h.view, h.all + HAND_SLOTS_AT, 1), 0);
}

static void large_objects(void **state)
{
	const uint64_t head = 63 * PANDO__PAGE_GRANULES;

	(void)state;
	BREAK(hand_word(&h, 0, head + 2), 0, "without a length");
	BREAK(hand_word(&h, 0, head + 3), PANDO__OBJECT_LENGTH(1ull << 30, 2), "without a length");
	BREAK(hand_word(&h, 0, head + 9), PANDO__OBJECT_LIVE, "inside a large object");
	BREAK(&h.view.page_table[(h.first + 1) * PANDO__SPAN_PAGES], 0, "page of others");
}

static void orphans(void **state)
{
	(void)state;
	BREAK(hand_object(&h, 2, 4, 1, 8), PANDO__OBJECT_LIVE, "private object in an orphan");
	BREAK(&hand_span(&h, 2)->remote, 0, "no hint");
	BREAK(hand_word(&h, 2, 150), PANDO__OBJECT_LENGTH(9, 0), "length without an object");
}

static void spans(void **state)
{
	(void)state;
	BREAK(&hand_span(&h, 5)->word, PANDO__SPAN_WORD(0, 9, 0), "in no state");
	BREAK(&hand_span(&h, 5)->pages, 4, "with pages in use");
	BREAK(&h.view.page_table[(h.first + 5) * PANDO__SPAN_PAGES], 4, "an entry in a span");
	BREAK(hand_word(&h, 5, 77), PANDO__OBJECT_REMOTE, "a word in a span");
	BREAK(&h.view.heap->granule, 16, "does not describe");
	BREAK(&h.view.heap->objects, 16, "does not describe");
	h.view.heap->magic = 0;
	assert_int_equal(pando__heap_verify(&h.view, NULL, 1), -EINVAL);
}

static void a_walk_counts(void **state)
{
	struct pando__walk_client clients[HAND_SLOTS] = {{0}};
	struct pando__walk w = {.clients = clients, .client_count = HAND_SLOTS};
	const struct pando__walk_class *large = &w.classes[PANDO__WALK_LARGE];

	(void)state;
	assert_int_equal(pando__heap_walk(&h.view, &w), 0);
	assert_int_equal(w.spans, (h.view.end - h.view.first) / PANDO__SPAN);
	assert_int_equal(w.spans_owned, 2);
	assert_int_equal(w.spans_orphaned, 1);
	assert_int_equal(w.spans_free, w.spans - 3);
	assert_int_equal(w.pages, 16 + 2 + 8 + 2);
	assert_int_equal(w.classes[1].slabs, 2);
	assert_int_equal(w.classes[1].room, 2048);
	assert_int_equal(w.classes[1].objects, 3);
	assert_int_equal(w.classes[1].bytes, 96);
	assert_int_equal(w.classes[1].shared, 2);
	assert_int_equal(w.classes[1].cached, 1);
	assert_int_equal(w.classes[10].held, 1);
	assert_int_equal(w.classes[10].bytes, 384);
	assert_int_equal(w.classes[10].pending, 1);
	assert_int_equal(large->objects, 2);
	assert_int_equal(large->bytes, 300 * PANDO__GRANULE);
	assert_int_equal(large->pending, 1);
	assert_int_equal(clients[A - 1].spans, 2);
	assert_int_equal(clients[A - 1].pages, 18);
	assert_int_equal(clients[A - 1].objects, 2);
	assert_int_equal(clients[A - 1].bytes, 32 + 200 * PANDO__GRANULE);
	assert_int_equal(clients[A - 1].cached_bytes, 32);
	assert_int_equal(clients[A - 1].pending_bytes, 384);
	assert_true(clients[A - 1].told);
	assert_int_equal(clients[B - 1].held, 1);
	assert_int_equal(clients[B - 1].held_bytes, 384);
	assert_int_equal(w.orphan_objects, 2);
	assert_int_equal(w.orphan_bytes, 32 + 100 * PANDO__GRANULE);
	assert_int_equal(w.orphan_pending, 1);
	assert_int_equal(w.orphan_pages, 10);
	h.view.heap->magic = 0;
	assert_int_equal(pando__heap_walk(&h.view, &w), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(slabs, setup, teardown),
		cmocka_unit_test_setup_teardown(holders, setup, teardown),
		cmocka_unit_test_setup_teardown(large_objects, setup, teardown),
		cmocka_unit_test_setup_teardown(orphans, setup, teardown),
		cmocka_unit_test_setup_teardown(spans, setup, teardown),
		cmocka_unit_test_setup_teardown(a_walk_counts, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
