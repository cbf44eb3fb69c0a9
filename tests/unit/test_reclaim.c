/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reaping and sweeping over heaps made by hand: every state of a word, large objects within and over
 * spans, objects held by others and of others, intents, and a death of the broker at every injection
 * point of its own code, after which the next one comes to the same end.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "allocator/check.h"
#include "hand_heap.h"

#define A 1u /* clients: slot + 1 */
#define B 2u
#define C 3u
#define REGION PANDO__OBJECT_SHARED(PANDO__HOLDER_REGION)
#define SHARED(client) PANDO__OBJECT_SHARED(client)

static struct hand h;
static char self[4096]; /* this program */

static int setup(void **state)
{
	(void)state;
	assert_true(hand_map(&h, -1));
	for (uint32_t c = A; c <= C; c++)
		hand_client(&h, c - 1, 5, PANDO__CLIENT_LIVE);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	if (h.view.heap->magic && pando__heap_verify(&h.view, h.all + HAND_SLOTS_AT, 1) < 0)
		fail_msg("%s", pando_strerror_last());
	hand_unmap(&h);
	return 0;
}

static struct pando__reclaimed reap(uint32_t client)
{
	struct pando__reclaimed out;

	hand_client(&h, client - 1, 5, PANDO__CLIENT_REAPING);
	assert_int_equal(pando__heap_reap(&h.view, hand_slots(&h), client - 1, &out), 0);
	return out;
}

static struct pando__reclaimed sweep(void)
{
	struct pando__reclaimed out;

	assert_int_equal(pando__heap_sweep(&h.view, &out), 0);
	return out;
}

static void nothing_without_a_heap(void **state)
{
	struct pando__reclaimed out;

	(void)state;
	h.view.heap->magic = 0;
	assert_int_equal(pando__heap_reap(&h.view, hand_slots(&h), 0, &out), 1);
	assert_int_equal(pando__heap_sweep(&h.view, &out), 1);
	assert_int_equal(pando__heap_recover(&h.view, &out), 1);
}

static void slab_of_the_dead_with_every_state(void **state)
{
	static const unsigned int class = 3; /* 96 bytes */
	struct pando__reclaimed out;

	(void)state;
	hand_own(&h, 2, A, PANDO__SPAN_OWNED);
	hand_slab(&h, 2, 1, A, class);
	*hand_object(&h, 2, 1, class, 0) = PANDO__OBJECT_LIVE;
	*hand_object(&h, 2, 1, class, 1) = PANDO__OBJECT_CACHED;
	*hand_object(&h, 2, 1, class, 2) = PANDO__OBJECT_REMOTE;
	*hand_object(&h, 2, 1, class, 3) = SHARED(A);
	*hand_object(&h, 2, 1, class, 4) = SHARED(B);
	*hand_object(&h, 2, 1, class, 5) = REGION;
	*hand_object(&h, 2, 1, class, 6) = PANDO__OBJECT_LIVE;
	*hand_word(&h, 2, PANDO__SLAB_GRANULES + 1) = REGION; /* no object begins there */
	hand_span(&h, 2)->remote = 2;
	h.view.clients[A - 1].spans = 1;
	h.view.clients[A - 1].remote = 1;
	out = reap(A);
	assert_int_equal(out.objects, 3);
	assert_int_equal(out.bytes, 3 * 96);
	assert_int_equal(out.spans_orphaned, 1);
	assert_int_equal(out.spans_freed, 0);
	for (unsigned int i = 0; i < 8; i++)
		assert_int_equal(*hand_object(&h, 2, 1, class, i), i == 4   ? SHARED(B)
								   : i == 5 ? REGION
									    : PANDO__OBJECT_FREE);
	assert_int_equal(*hand_word(&h, 2, PANDO__SLAB_GRANULES + 1), 0);
	assert_int_equal(hand_state(&h, 2), PANDO__SPAN_ORPHAN);
	assert_int_equal(PANDO__SPAN_OWNER(hand_span(&h, 2)->word), PANDO__OWNER_ORPHAN);
	assert_true(PANDO__SPAN_COUNT(hand_span(&h, 2)->word) > 7);
	assert_int_equal(hand_span(&h, 2)->pages, 0xff00);
	assert_int_equal(hand_span(&h, 2)->held, 1);
	assert_int_equal(hand_span(&h, 2)->remote, 0);
	for (unsigned int p = 8; p < 16; p++)
		assert_int_equal(hand_entry(&h, 2, p),
				 PANDO__PAGE_ENTRY(PANDO__OWNER_ORPHAN, class, 0));
	assert_int_equal(h.view.clients[A - 1].spans, 0);
	assert_int_equal(h.view.clients[A - 1].remote, 0);
	/* The last two go: one with its holder, one freed. */
	*hand_object(&h, 2, 1, class, 5) = PANDO__OBJECT_REMOTE;
	pando__remote_hint(&h.view, hand_offset(&h, 2, PANDO__SLAB_GRANULES + 15));
	assert_int_equal(h.view.heap->orphan_remote.value, 1);
	assert_int_equal(sweep().spans_freed, 0);
	assert_int_equal(*hand_object(&h, 2, 1, class, 5), PANDO__OBJECT_FREE);
	out = reap(B);
	assert_int_equal(out.objects, 1);
	assert_int_equal(out.spans_freed, 1);
	assert_int_equal(hand_used(&h), 0);
	assert_int_equal(hand_rubbish(&h), 0);
}

static void slabs_of_every_class(void **state)
{
	(void)state;
	for (unsigned int class = 1; class < PANDO__CLASSES; class ++) {
		hand_own(&h, class, A, PANDO__SPAN_OWNED);
		hand_slab(&h, class, 7, A, class);
		for (unsigned int i = 0; i < pando__classes[class].count; i++)
			*hand_object(&h, class, 7, class, i) = i % 3 ? PANDO__OBJECT_LIVE : REGION;
	}
	assert_int_equal(reap(A).spans_orphaned, PANDO__CLASSES - 1);
	for (unsigned int class = 1; class < PANDO__CLASSES; class ++)
		for (unsigned int i = 0; i < pando__classes[class].count; i++)
			assert_int_equal(*hand_object(&h, class, 7, class, i), i % 3 ? 0 : REGION);
	for (unsigned int class = 1; class < PANDO__CLASSES; class ++) {
		for (unsigned int i = 0; i < pando__classes[class].count; i += 3)
			*hand_object(&h, class, 7, class, i) = PANDO__OBJECT_REMOTE;
		pando__remote_hint(&h.view, hand_offset(&h, class, 7 * PANDO__SLAB_GRANULES));
	}
	assert_int_equal(sweep().spans_freed, PANDO__CLASSES - 1);
	assert_int_equal(hand_rubbish(&h), 0);
}

static void large_objects_of_the_dead(void **state)
{
	struct pando__reclaimed out;

	(void)state;
	hand_own(&h, 0, A, PANDO__SPAN_OWNED);
	hand_large(&h, 0, 0, 40, A, PANDO__OBJECT_LIVE);
	hand_large(&h, 0, 40, 40, A, REGION); /* the same pages */
	hand_large(&h, 0, 80, 64, A, PANDO__OBJECT_REMOTE);
	hand_large(&h, 0, 256, 300, A, SHARED(A)); /* pages 2 to 4 */
	hand_large(&h, 0, 1024, 48, A, SHARED(C)); /* page 8 */
	/* One that was being made, one that was being freed, and rubbish. */
	hand_large(&h, 0, 2048, 64, A, PANDO__OBJECT_FREE);
	hand_large(&h, 0, 2176, 64, A, PANDO__OBJECT_CACHED);
	*hand_word(&h, 0, 2300) = 0x1234;
	hand_large(&h, 0, 4096, 64, A, REGION);
	*hand_word(&h, 0, 4098) = 0; /* without a length it is nothing */
	out = reap(A);
	assert_int_equal(out.objects, 2);
	assert_int_equal(out.bytes, 340 * PANDO__GRANULE);
	assert_int_equal(hand_state(&h, 0), PANDO__SPAN_ORPHAN);
	assert_int_equal(hand_span(&h, 0)->pages, 0x101);
	assert_int_equal(hand_span(&h, 0)->held, 1);
	assert_int_equal(
		hand_entry(&h, 0, 0),
		PANDO__PAGE_ENTRY(PANDO__OWNER_ORPHAN, PANDO__CLASS_LARGE, PANDO__PAGE_LOOSE));
	assert_int_equal(hand_entry(&h, 0, 1), 0);
	assert_int_equal(*hand_word(&h, 0, 40), REGION);
	assert_int_equal(pando__large_granules(&h.view, h.first * PANDO__SPAN_GRANULES + 40), 40);
	*hand_word(&h, 0, 40) = PANDO__OBJECT_REMOTE;
	pando__remote_hint(&h.view, hand_offset(&h, 0, 40));
	assert_int_equal(sweep().spans_freed, 0);
	assert_int_equal(hand_span(&h, 0)->pages, 0x100);
	assert_int_equal(reap(C).spans_freed, 1);
	assert_int_equal(hand_rubbish(&h), 0);
}

/* One object over three spans, and neighbours in the first and last one. */
static void make_long(uint16_t word)
{
	for (uint64_t i = 1; i <= 3; i++)
		hand_own(&h, i, A, PANDO__SPAN_OWNED);
	hand_slab(&h, 1, 0, A, 1);
	*hand_object(&h, 1, 0, 1, 9) = REGION;
	/* From page 32 of span 1 to page 15 of span 3. */
	hand_large(&h, 1, 32 * PANDO__PAGE_GRANULES,
		   32 * PANDO__PAGE_GRANULES + PANDO__SPAN_GRANULES + 16 * PANDO__PAGE_GRANULES - 8,
		   A, word);
	hand_large(&h, 3, 16 * PANDO__PAGE_GRANULES - 8, 100, A, REGION); /* its last page, too */
	hand_slab(&h, 3, 7, A, 2);
	*hand_object(&h, 3, 7, 2, 1) = PANDO__OBJECT_LIVE;
}

static void check_long_gone(void)
{
	assert_int_equal(hand_state(&h, 1), PANDO__SPAN_ORPHAN);
	assert_int_equal(hand_span(&h, 1)->pages, 0xff);
	assert_true(hand_state(&h, 2) == PANDO__SPAN_FREE);
	assert_int_equal(hand_span(&h, 2)->pages, 0);
	assert_int_equal(hand_state(&h, 3), PANDO__SPAN_ORPHAN);
	assert_int_equal(hand_span(&h, 3)->pages, 1ull << 15 | 1ull << 16);
	assert_int_equal(hand_used(&h), 2);
}

static void free_the_rest(void)
{
	*hand_object(&h, 1, 0, 1, 9) = PANDO__OBJECT_REMOTE;
	pando__remote_hint(&h.view, hand_offset(&h, 1, 9));
	*hand_word(&h, 3, 16 * PANDO__PAGE_GRANULES - 8) = PANDO__OBJECT_REMOTE;
	pando__remote_hint(&h.view, hand_offset(&h, 3, 16 * PANDO__PAGE_GRANULES - 8));
	sweep();
	assert_int_equal(hand_used(&h), 0);
	assert_int_equal(hand_rubbish(&h), 0);
}

static void long_object_dies_with_its_owner(void **state)
{
	(void)state;
	make_long(PANDO__OBJECT_LIVE);
	assert_int_equal(reap(A).spans_freed, 1);
	check_long_gone();
	free_the_rest();
}

static void long_object_survives_and_is_freed(void **state)
{
	(void)state;
	make_long(REGION);
	assert_int_equal(reap(A).spans_orphaned, 3);
	assert_int_equal(hand_span(&h, 1)->pages, 0xffffffff000000ffull);
	assert_int_equal(hand_span(&h, 2)->pages, UINT64_MAX);
	assert_int_equal(hand_span(&h, 3)->pages, 0x1ffff);
	assert_false(PANDO__PAGE_FLAGS(hand_entry(&h, 1, 63)) & PANDO__PAGE_INNER);
	for (unsigned int p = 0; p < 64; p++)
		assert_true(PANDO__PAGE_FLAGS(hand_entry(&h, 2, p)) & PANDO__PAGE_INNER);
	assert_true(PANDO__PAGE_FLAGS(hand_entry(&h, 3, 15)) & PANDO__PAGE_INNER);
	assert_false(PANDO__PAGE_FLAGS(hand_entry(&h, 3, 16)) & PANDO__PAGE_INNER);
	/* Sweeping its inner spans alone leaves them. */
	hand_span(&h, 2)->remote = 1;
	hand_span(&h, 3)->remote = 1;
	assert_int_equal(sweep().spans_freed, 0);
	assert_int_equal(hand_span(&h, 2)->pages, UINT64_MAX);
	assert_int_equal(hand_span(&h, 3)->pages, 0x1ffff);
	*hand_word(&h, 1, 32 * PANDO__PAGE_GRANULES) = PANDO__OBJECT_REMOTE;
	pando__remote_hint(&h.view, hand_offset(&h, 1, 32 * PANDO__PAGE_GRANULES));
	assert_int_equal(sweep().spans_freed, 1);
	check_long_gone();
	free_the_rest();
}

/*
 * Brokers died while they released what follows a long object, before its head was cleared. Since
 * then what follows has been somebody else's, who has died, too: an object reaches from one of these
 * spans into the next.
 */
static void what_follows_is_anothers_by_now(void **state)
{
	const uint64_t half = 32 * PANDO__PAGE_GRANULES;

	(void)state;
	for (int with_small = 0; with_small < 2; with_small++) {
		/* From page 32 of span 1 to page 15 of span 3. */
		hand_own(&h, 1, A, PANDO__SPAN_SWEEPING);
		hand_large(&h, 1, half, half + PANDO__SPAN_GRANULES + half / 2, A,
			   PANDO__OBJECT_REMOTE);
		memset(&h.view.page_table[(h.first + 2) * PANDO__SPAN_PAGES], 0,
		       2 * PANDO__SPAN_PAGES * sizeof(uint32_t));
		hand_span(&h, 2)->pages = hand_span(&h, 3)->pages = 0;
		hand_own(&h, 2, B, PANDO__SPAN_OWNED);
		hand_own(&h, 3, B, PANDO__SPAN_OWNED);
		if (with_small) {
			hand_slab(&h, 2, 0, B, 1);
			*hand_object(&h, 2, 0, 1, 5) = REGION;
		}
		/* From page 40 of span 2 to page 7 of span 3. */
		hand_large(&h, 2, 40 * PANDO__PAGE_GRANULES, half, B, REGION);
		assert_int_equal(reap(B).spans_orphaned, 2);
		(void)reap(A);
		assert_true(hand_state(&h, 1) == PANDO__SPAN_FREE);
		assert_int_equal(hand_state(&h, 2), PANDO__SPAN_ORPHAN);
		assert_int_equal(hand_state(&h, 3), PANDO__SPAN_ORPHAN);
		assert_int_equal(hand_span(&h, 2)->pages,
				 0xffffff0000000000ull | (with_small ? 0xff : 0));
		assert_int_equal(hand_span(&h, 3)->pages, 0xff);
		for (unsigned int p = 0; p < 8; p++)
			assert_true(PANDO__PAGE_FLAGS(hand_entry(&h, 3, p)) & PANDO__PAGE_INNER);
		assert_int_equal(*hand_word(&h, 2, 40 * PANDO__PAGE_GRANULES), REGION);
		/* It goes when it is freed, with all that it has. */
		*hand_word(&h, 2, 40 * PANDO__PAGE_GRANULES) = PANDO__OBJECT_REMOTE;
		pando__remote_hint(&h.view, hand_offset(&h, 2, 40 * PANDO__PAGE_GRANULES));
		if (with_small) {
			*hand_object(&h, 2, 0, 1, 5) = PANDO__OBJECT_REMOTE;
			pando__remote_hint(&h.view, hand_offset(&h, 2, 5));
		}
		(void)sweep();
		assert_int_equal(hand_used(&h), 0);
		assert_int_equal(hand_rubbish(&h), 0);
	}
}

/*
 * The same, but in between only the first of the following spans has been freed, and is in use: the
 * rest is the long object's still.
 */
static void some_of_what_follows_is_in_use(void **state)
{
	const uint64_t half = 32 * PANDO__PAGE_GRANULES;

	(void)state;
	hand_own(&h, 1, A, PANDO__SPAN_SWEEPING);
	hand_own(&h, 3, PANDO__OWNER_ORPHAN, PANDO__SPAN_ORPHAN);
	hand_large(&h, 1, half, half + PANDO__SPAN_GRANULES + half / 2, A, PANDO__OBJECT_REMOTE);
	memset(&h.view.page_table[(h.first + 2) * PANDO__SPAN_PAGES], 0,
	       PANDO__SPAN_PAGES * sizeof(uint32_t));
	hand_pages(&h, 3, 0, 16,
		   PANDO__PAGE_ENTRY(PANDO__OWNER_ORPHAN, PANDO__CLASS_LARGE,
				     PANDO__PAGE_LOOSE | PANDO__PAGE_INNER));
	hand_span(&h, 2)->pages = 0;
	hand_own(&h, 2, B, PANDO__SPAN_OWNED);
	hand_slab(&h, 2, 7, B, 1);
	*hand_object(&h, 2, 7, 1, 1023) = PANDO__OBJECT_LIVE;
	(void)reap(A);
	assert_int_equal(hand_used(&h), 1);
	assert_int_equal(hand_state(&h, 2), PANDO__SPAN_OWNED);
	assert_int_equal(*hand_object(&h, 2, 7, 1, 1023), PANDO__OBJECT_LIVE);
	(void)reap(B);
	assert_int_equal(hand_rubbish(&h), 0);
}

static void what_the_dead_holds_elsewhere(void **state)
{
	struct pando__reclaimed out;

	(void)state;
	hand_own(&h, 0, B, PANDO__SPAN_OWNED);
	hand_slab(&h, 0, 2, B, 4);
	*hand_object(&h, 0, 2, 4, 0) = PANDO__OBJECT_LIVE;
	*hand_object(&h, 0, 2, 4, 1) = SHARED(A);
	*hand_object(&h, 0, 2, 4, 2) = SHARED(C);
	*hand_object(&h, 0, 2, 4, 3) = REGION;
	hand_large(&h, 0, 5000, 500, B, SHARED(A));
	hand_span(&h, 0)->held = 1;
	hand_own(&h, 1, B, PANDO__SPAN_OWNED);
	hand_slab(&h, 1, 0, B, 4);
	*hand_object(&h, 1, 0, 4, 1) = SHARED(A);
	hand_span(&h, 1)->held = 1;
	out = reap(A);
	assert_int_equal(out.objects, 3);
	assert_int_equal(out.bytes, 128 + 500 * 32 + 128);
	assert_int_equal(*hand_object(&h, 0, 2, 4, 0), PANDO__OBJECT_LIVE);
	assert_int_equal(*hand_object(&h, 0, 2, 4, 1), PANDO__OBJECT_REMOTE);
	assert_int_equal(*hand_object(&h, 0, 2, 4, 2), SHARED(C));
	assert_int_equal(*hand_object(&h, 0, 2, 4, 3), REGION);
	assert_int_equal(*hand_word(&h, 0, 5000), PANDO__OBJECT_REMOTE);
	assert_int_equal(hand_span(&h, 0)->remote, 1 << 2 | 1 << 4);
	assert_int_equal(hand_span(&h, 1)->remote, 1);
	assert_int_equal(hand_span(&h, 0)->held, 1);
	assert_int_equal(hand_span(&h, 1)->held, 0);
	assert_int_equal(h.view.clients[B - 1].remote, 1);
	assert_int_equal(hand_state(&h, 0), PANDO__SPAN_OWNED);
}

static void intents_of_the_dead(void **state)
{
	struct pando__intent *in = hand_intents(&h, A - 1);
	uint64_t object[6];

	(void)state;
	hand_own(&h, 0, B, PANDO__SPAN_OWNED);
	hand_slab(&h, 0, 3, B, 1);
	for (unsigned int i = 0; i < 6; i++)
		object[i] = hand_offset(&h, 0, 3 * PANDO__SLAB_GRANULES + i);
	hand_client(&h, C - 1, 5, PANDO__CLIENT_FREE); /* gone */
	*hand_object(&h, 0, 3, 1, 0) = PANDO__OBJECT_REMOTE;
	*hand_object(&h, 0, 3, 1, 1) = SHARED(C);
	*hand_object(&h, 0, 3, 1, 2) = PANDO__OBJECT_LIVE;
	in[0] = (struct pando__intent){.what = PANDO__INTENT(PANDO__INTENT_FREE, object[2])};
	in[1] = (struct pando__intent){.what = PANDO__INTENT(PANDO__INTENT_TRANSFER, object[1]),
				       .to = C | 5ull << 16};
	(void)reap(A);
	/* A free that had not happened is not made; a gift to nobody is freed. */
	assert_int_equal(*hand_object(&h, 0, 3, 1, 2), PANDO__OBJECT_LIVE);
	assert_int_equal(*hand_object(&h, 0, 3, 1, 1), PANDO__OBJECT_REMOTE);
	assert_int_equal(hand_span(&h, 0)->remote, 1 << 3);
	hand_span(&h, 0)->remote = 0;
	h.view.clients[B - 1].remote = 0;
	in[0] = (struct pando__intent){.what = PANDO__INTENT(PANDO__INTENT_FREE, object[0])};
	in[1] = (struct pando__intent){0};
	(void)reap(A);
	assert_int_equal(hand_span(&h, 0)->remote, 1 << 3);
	assert_int_equal(h.view.clients[B - 1].remote, 1);
	/* The receiver lives: it keeps what it was given, and is found when it dies. */
	*hand_object(&h, 0, 3, 1, 4) = SHARED(C);
	hand_client(&h, C - 1, 6, PANDO__CLIENT_LIVE);
	in[PANDO__INTENTS - 1] = (struct pando__intent){
		.what = PANDO__INTENT(PANDO__INTENT_TRANSFER, object[4]), .to = C | 6ull << 16};
	(void)reap(A);
	assert_int_equal(*hand_object(&h, 0, 3, 1, 4), SHARED(C));
	assert_int_equal(hand_span(&h, 0)->held, 1);
	/* Another generation has the slot: the transfer named the one before. */
	in[PANDO__INTENTS - 1].to = C | 5ull << 16;
	(void)reap(A);
	assert_int_equal(*hand_object(&h, 0, 3, 1, 4), PANDO__OBJECT_REMOTE);
	/* Rubbish is passed over. */
	for (unsigned int i = 0; i < PANDO__INTENTS; i++)
		in[i] = (struct pando__intent){.what = UINT64_MAX << i % 64, .to = UINT64_MAX};
	(void)reap(A);
}

static bool named(uint32_t client)
{
	static uint64_t bits[(PANDO__HEAP_CLIENTS + 63) / 64];

	pando__heap_slots_named(&h.view, (const char *)hand_slot(&h, 0), bits);
	return bits[(client - 1) / 64] >> (client - 1) % 64 & 1;
}

static void a_slot_that_is_named_waits(void **state)
{
	struct pando__intent *in = hand_intents(&h, B - 1);

	(void)state;
	assert_false(named(A));
	in[95] = (struct pando__intent){.what = PANDO__INTENT(PANDO__INTENT_TRANSFER, 1 << 20),
					.to = A | 5ull << 16};
	assert_true(named(A));
	assert_false(named(C));
	in[95].what = PANDO__INTENT(PANDO__INTENT_FREE, 1 << 20);
	assert_false(named(A));
	in[95] = (struct pando__intent){.what = PANDO__INTENT(PANDO__INTENT_TRANSFER, 1 << 20)};
	in[94] = (struct pando__intent){.what = PANDO__INTENT(PANDO__INTENT_TRANSFER, 1 << 20),
					.to = UINT64_MAX};
	for (uint32_t c = 1; c <= PANDO__HEAP_CLIENTS; c++)
		assert_false(named(c)); /* rubbish names nobody */
	in[94].to = PANDO__HEAP_CLIENTS;
	assert_true(named(PANDO__HEAP_CLIENTS));
}

static void recovery_puts_hints_back(void **state)
{
	struct pando__reclaimed out;

	(void)state;
	hand_own(&h, 0, B, PANDO__SPAN_OWNED);
	hand_slab(&h, 0, 3, B, 1);
	*hand_object(&h, 0, 3, 1, 5) = PANDO__OBJECT_REMOTE;
	*hand_object(&h, 0, 3, 1, 6) = SHARED(C);
	hand_own(&h, 1, PANDO__OWNER_ORPHAN, PANDO__SPAN_SWEEPING);
	hand_slab(&h, 1, 3, PANDO__OWNER_ORPHAN, 1);
	*hand_object(&h, 1, 3, 1, 5) = PANDO__OBJECT_REMOTE;
	assert_int_equal(pando__heap_recover(&h.view, &out), 0);
	assert_int_equal(hand_span(&h, 0)->remote, 1 << 3);
	assert_int_equal(hand_span(&h, 0)->held, 1);
	assert_int_equal(h.view.clients[B - 1].remote, 1);
	assert_int_equal(hand_used(&h), 1);
}

static void what_the_idle_have_not_collected(void **state)
{
	struct pando__reclaimed out;

	(void)state;
	hand_own(&h, 0, B, PANDO__SPAN_OWNED);
	hand_slab(&h, 0, 3, B, 2);
	hand_slab(&h, 0, 4, B, 2);
	hand_slab(&h, 0, 5, B, 2);
	for (unsigned int e = 3; e <= 5; e++) {
		*hand_object(&h, 0, e, 2, 5) = PANDO__OBJECT_REMOTE;
		*hand_object(&h, 0, e, 2, 6) = e == 4 ? PANDO__OBJECT_CACHED : PANDO__OBJECT_FREE;
	}
	hand_pages(&h, 0, 5 * PANDO__SLAB_PAGES, 1, PANDO__PAGE_ENTRY(B, 2, PANDO__PAGE_BUSY));
	hand_large(&h, 0, 0, 50, B, PANDO__OBJECT_REMOTE);
	hand_span(&h, 0)->remote = 1 | 1 << 3 | 1 << 4 | 1 << 5;
	h.view.clients[B - 1].remote = 1;
	h.view.lazy = true;
	assert_int_equal(pando__heap_collect_idle(&h.view, B - 1, &out), 0);
	assert_int_equal(out.objects, 2);
	assert_int_equal(out.bytes, 128);
	/* Large ones, and a slab that its owner is at, are left to the owner. */
	assert_int_equal(hand_span(&h, 0)->remote, 1 | 1 << 5 | 3 << 11);
	assert_int_equal(h.view.clients[B - 1].remote, 1);
	assert_int_equal(h.view.clients[B - 1].recount, 1);
	assert_int_equal(*hand_object(&h, 0, 3, 2, 5), PANDO__OBJECT_FREE);
	assert_int_equal(*hand_object(&h, 0, 4, 2, 5), PANDO__OBJECT_FREE);
	assert_int_equal(*hand_object(&h, 0, 4, 2, 6), PANDO__OBJECT_CACHED);
	assert_int_equal(*hand_object(&h, 0, 5, 2, 5), PANDO__OBJECT_REMOTE);
	assert_int_equal(*hand_word(&h, 0, 0), PANDO__OBJECT_REMOTE);
	assert_int_equal(hand_entry(&h, 0, 24), PANDO__PAGE_ENTRY(B, 2, PANDO__PAGE_EMPTY));
	assert_int_equal(hand_entry(&h, 0, 32), PANDO__PAGE_ENTRY(B, 2, 0));
	/* A broker died while it emptied a slab. */
	hand_pages(&h, 0, 32, 1, PANDO__PAGE_ENTRY(B, 2, PANDO__PAGE_EMPTYING));
	assert_int_equal(pando__heap_recover(&h.view, &out), 0);
	assert_int_equal(hand_entry(&h, 0, 32), PANDO__PAGE_ENTRY(B, 2, PANDO__PAGE_EMPTY));
	assert_int_equal(pando__heap_collect_idle(&h.view, PANDO__HEAP_CLIENTS, &out), 0);
}

/* Pages of a span that have memory. */
static unsigned int resident(uint64_t span)
{
	unsigned char map[PANDO__SPAN_PAGES];
	unsigned int n = 0;

	assert_int_equal(mincore(h.view.base + hand_offset(&h, span, 0), PANDO__SPAN, map), 0);
	for (unsigned int i = 0; i < PANDO__SPAN_PAGES; i++)
		n += map[i] & 1;
	return n;
}

/* Reaping gives no memory back: that of orphans is lent to the next sweep, that of free spans waits. */
static void memory_of_the_dead_goes_later(void **state)
{
	struct pando__reclaimed out;

	(void)state;
	h.view.lazy = true;
	for (uint64_t i = 0; i < 3; i++) {
		hand_own(&h, i, A, PANDO__SPAN_OWNED);
		hand_slab(&h, i, 2, A, 3);
		*hand_object(&h, i, 2, 3, 1) = i == 1 ? PANDO__OBJECT_LIVE : REGION;
		memset(h.view.base + hand_offset(&h, i, 0), 1, PANDO__SPAN);
	}
	hand_span(&h, 2)->lent = PANDO__LENT_BUSY; /* a broker died before A did */
	(void)reap(A);
	assert_int_equal(hand_state(&h, 0), PANDO__SPAN_ORPHAN);
	assert_int_equal(hand_span(&h, 0)->lent, PANDO__LENT);
	assert_int_equal(hand_state(&h, 1), PANDO__SPAN_RESERVE);
	assert_int_equal(hand_span(&h, 1)->lent, PANDO__LENT_NONE);
	assert_int_equal(hand_span(&h, 2)->lent, PANDO__LENT);
	assert_int_equal(resident(0) + resident(1) + resident(2), 3 * 64);
	assert_int_equal(pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 60000, 100), 2);
	assert_int_equal(resident(0), 8);
	assert_int_equal(resident(1), 64);
	assert_int_equal(hand_span(&h, 0)->lent, PANDO__LENT_NONE);
	/* Another one died in the middle of that. */
	hand_span(&h, 0)->lent = PANDO__LENT_BUSY;
	memset(h.view.base + hand_offset(&h, 0, 0), 1, PANDO__SPAN);
	assert_int_equal(pando__heap_recover(&h.view, &out), 0);
	assert_int_equal(hand_span(&h, 0)->lent, PANDO__LENT_NONE);
	assert_int_equal(resident(0), 8);
	*hand_object(&h, 0, 2, 3, 1) = PANDO__OBJECT_REMOTE;
	pando__remote_hint(&h.view, hand_offset(&h, 0, 2 * PANDO__SLAB_GRANULES));
	assert_int_equal(sweep().spans_freed, 1);
	assert_int_equal(hand_state(&h, 0), PANDO__SPAN_RESERVE);
	assert_int_equal(hand_span(&h, 0)->lent, PANDO__LENT_NONE);
	assert_int_equal(pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 0, 100), 2);
	assert_int_equal(resident(0) + resident(1), 0);
}

/* --- a death of the broker at every step --- */

static const char *const points[] = {
	"heap.reap.intent",    "heap.reap.held",	"heap.reap.taken",
	"heap.reap.judged",    "heap.reap.finished",	"heap.sweep.taken",
	"heap.rebuild.slab",   "heap.rebuild.head",	"heap.rebuild.judged",
	"heap.rebuild.lent",   "heap.rebuild.released", "heap.rebuild.finished",
	"heap.span.releasing", "heap.span.released",
};

/* A heap in which everything above is there at once; A is dead. */
static void make_all(void)
{
	struct pando__intent *in = hand_intents(&h, A - 1);

	make_long(REGION);
	(void)reap(A); /* the long one is an orphan */
	*hand_word(&h, 1, 32 * PANDO__PAGE_GRANULES) = PANDO__OBJECT_REMOTE;
	pando__remote_hint(&h.view, hand_offset(&h, 1, 32 * PANDO__PAGE_GRANULES));
	for (uint64_t i = 4; i < 8; i++) {
		hand_own(&h, i, A, PANDO__SPAN_OWNED);
		hand_slab(&h, i, 0, A, 3);
		*hand_object(&h, i, 0, 3, 1) = PANDO__OBJECT_LIVE;
		*hand_object(&h, i, 0, 3, 2) = i % 2 ? REGION : PANDO__OBJECT_REMOTE;
		hand_large(&h, i, 3000, 50, A, PANDO__OBJECT_LIVE);
	}
	/* From span 6 into 7. */
	hand_large(&h, 6, PANDO__SPAN_GRANULES - 900, 1000, A, PANDO__OBJECT_LIVE);
	hand_own(&h, 10, B, PANDO__SPAN_OWNED);
	hand_slab(&h, 10, 3, B, 1);
	*hand_object(&h, 10, 3, 1, 0) = SHARED(A);
	*hand_object(&h, 10, 3, 1, 1) = PANDO__OBJECT_REMOTE;
	*hand_object(&h, 10, 3, 1, 2) = SHARED(C);
	hand_span(&h, 10)->held = 1;
	in[0] = (struct pando__intent){
		.what = PANDO__INTENT(PANDO__INTENT_FREE,
				      hand_offset(&h, 10, 3 * PANDO__SLAB_GRANULES + 1))};
	hand_client(&h, A - 1, 5, PANDO__CLIENT_REAPING);
}

/* What must be the same however often the broker died: a number over words, entries, states, hints. */
static uint64_t digest(void)
{
	uint64_t sum = 0xcbf29ce484222325ull;

#define MIX(x) (sum = (sum ^ (uint64_t)(x)) * 0x100000001b3ull)
	for (uint64_t i = 0; i < 16; i++) {
		struct pando__span *s = hand_span(&h, i);

		MIX(PANDO__SPAN_STATE(s->word));
		MIX(PANDO__SPAN_OWNER(s->word));
		MIX(s->pages);
		MIX(s->held);
		if (hand_state(&h, i) == PANDO__SPAN_OWNED)
			MIX(s->remote);
		for (unsigned int p = 0; p < PANDO__SPAN_PAGES; p++)
			MIX(hand_entry(&h, i, p));
		for (uint64_t g = 0; g < PANDO__SPAN_GRANULES; g++)
			MIX(*hand_word(&h, i, g));
	}
	MIX(h.view.clients[B - 1].remote);
	MIX(h.view.heap->orphans.value);
	return sum;
#undef MIX
}

static int victim(int fd)
{
	struct pando__reclaimed out;

	return hand_map(&h, fd) && pando__heap_reap(&h.view, hand_slots(&h), A - 1, &out) == 0 ? 0
											       : 1;
}

/* Runs the broker's work in a process that dies there. Returns whether it did. */
static bool die_at(int fd, const char *point, unsigned int passage)
{
	char arm[80], number[16];
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		snprintf(arm, sizeof(arm), "%s=kill@%u", point, passage);
		snprintf(number, sizeof(number), "%d", fd);
		setenv("PANDO_INJECT", arm, 1);
		execl(self, "victim", "--victim", number, NULL);
		_exit(127);
	}
	assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
	if (WIFSIGNALED(status)) {
		assert_int_equal(WTERMSIG(status), SIGKILL);
		return true;
	}
	assert_int_equal(WEXITSTATUS(status), 0);
	return false;
}

static int own_file(void)
{
	int fd = memfd_create("heap", 0);

	assert_true(fd >= 0 && ftruncate(fd, (off_t)HAND_ALL) == 0);
	return fd;
}

static void the_broker_dies_at_every_point(void **state)
{
	struct pando__reclaimed out;
	unsigned int deaths = 0;
	uint64_t want;

	(void)state;
	make_all();
	(void)reap(A);
	(void)pando__heap_recover(&h.view, &out);
	want = digest();
	hand_unmap(&h);
	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
		for (unsigned int passage = 1; passage < 200; passage += 1 + passage / 3) {
			int fd = own_file();
			bool died;

			assert_true(hand_map(&h, fd));
			for (uint32_t c = A; c <= C; c++)
				hand_client(&h, c - 1, 5, PANDO__CLIENT_LIVE);
			make_all();
			died = die_at(fd, points[i], passage);
			(void)reap(A);
			(void)pando__heap_recover(&h.view, &out);
			if (digest() != want)
				fail_msg("after a death at %s, passage %u, the heap is another",
					 points[i], passage);
			hand_unmap(&h);
			close(fd);
			deaths += died;
			if (!died && passage == 1 && deaths)
				fail_msg("%s was not reached", points[i]);
			if (!died)
				break;
		}
	assert_true(hand_map(&h, -1));
	if (deaths == 0)
		print_message("built without injection points: no deaths\n");
	else
		print_message("%u deaths\n", deaths);
}

/* A client that had 200 spans: time, and nothing left. */
static void much_at_once(void **state)
{
	struct timespec a, b;
	double ms, best = 1e9;

	(void)state;
	for (int round = 0; round < 5; round++) {
		for (uint64_t i = 0; i < 200; i++) {
			hand_own(&h, i, A, PANDO__SPAN_OWNED);
			for (unsigned int e = 0; e < 8; e++) {
				hand_slab(&h, i, e, A, 1);
				for (unsigned int n = 0; n < 1024; n++)
					*hand_object(&h, i, e, 1, n) = PANDO__OBJECT_LIVE;
			}
		}
		clock_gettime(CLOCK_MONOTONIC, &a);
		assert_int_equal(reap(A).bytes, 200 * PANDO__SPAN);
		clock_gettime(CLOCK_MONOTONIC, &b);
		ms = (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6;
		best = ms < best ? ms : best;
	}
	print_message("50 MiB in objects of 32 bytes: reaped in %.3f ms\n", best);
	assert_int_equal(hand_used(&h), 0);
	assert_int_equal(hand_rubbish(&h), 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(nothing_without_a_heap, setup, teardown),
		cmocka_unit_test_setup_teardown(slab_of_the_dead_with_every_state, setup, teardown),
		cmocka_unit_test_setup_teardown(slabs_of_every_class, setup, teardown),
		cmocka_unit_test_setup_teardown(large_objects_of_the_dead, setup, teardown),
		cmocka_unit_test_setup_teardown(long_object_dies_with_its_owner, setup, teardown),
		cmocka_unit_test_setup_teardown(long_object_survives_and_is_freed, setup, teardown),
		cmocka_unit_test_setup_teardown(what_follows_is_anothers_by_now, setup, teardown),
		cmocka_unit_test_setup_teardown(some_of_what_follows_is_in_use, setup, teardown),
		cmocka_unit_test_setup_teardown(what_the_dead_holds_elsewhere, setup, teardown),
		cmocka_unit_test_setup_teardown(intents_of_the_dead, setup, teardown),
		cmocka_unit_test_setup_teardown(a_slot_that_is_named_waits, setup, teardown),
		cmocka_unit_test_setup_teardown(recovery_puts_hints_back, setup, teardown),
		cmocka_unit_test_setup_teardown(what_the_idle_have_not_collected, setup, teardown),
		cmocka_unit_test_setup_teardown(memory_of_the_dead_goes_later, setup, teardown),
		cmocka_unit_test_setup_teardown(the_broker_dies_at_every_point, setup, teardown),
		cmocka_unit_test_setup_teardown(much_at_once, setup, teardown),
	};

	if (!realpath("/proc/self/exe", self))
		return 1;
	if (argc == 3 && strcmp(argv[1], "--victim") == 0)
		return victim(atoi(argv[2]));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
