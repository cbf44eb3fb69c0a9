/* SPDX-License-Identifier: BSD-2-Clause */
/* Mode bits and access lists. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "broker/access.h"

#define R PANDO_RIGHT_READ
#define W PANDO_RIGHT_WRITE

static struct identity peer(uid_t uid, gid_t gid)
{
	return (struct identity){.uid = uid, .gid = gid};
}

static unsigned int rights(uint32_t mode, uid_t uid, gid_t gid)
{
	struct region_record r = {.uid = 10, .gid = 20, .mode = mode};
	struct identity who = peer(uid, gid);

	return access_rights(&r, &who);
}

static void the_first_class_that_fits_decides(void **state)
{
	(void)state;
	assert_int_equal(rights(0600, 10, 20), R | W);
	assert_int_equal(rights(0600, 11, 20), 0);
	assert_int_equal(rights(0640, 11, 20), R);
	assert_int_equal(rights(0640, 11, 21), 0);
	assert_int_equal(rights(0666, 11, 21), R | W);
	assert_int_equal(rights(0066, 10, 20), 0); /* the owner shut himself out */
	assert_int_equal(rights(0606, 11, 20), 0); /* and this one his group */
	assert_int_equal(rights(0711, 11, 21), 0); /* x means nothing */
	assert_int_equal(rights(0000, 0, 0), R | W);
}

static void supplementary_groups_count(void **state)
{
	struct region_record r = {.uid = 10, .gid = 20, .mode = 0660};
	gid_t groups[] = {5, 20};
	struct identity who = {.uid = 11, .gid = 21, .groups = groups, .group_count = 2};

	(void)state;
	assert_int_equal(access_rights(&r, &who), R | W);
	who.group_count = 1;
	assert_int_equal(access_rights(&r, &who), 0);
	assert_true(access_member(&who, 5));
	assert_true(access_member(&who, 21));
	assert_false(access_member(&who, 20));
}

static void the_list_adds_to_the_mode(void **state)
{
	struct region_record r = {.uid = 10, .gid = 20, .mode = 0640};
	struct identity member = peer(11, 20), stranger = peer(12, 30);

	(void)state;
	assert_int_equal(access_grant(&r, PANDO_GRANT_UID, 11, W), 0);
	assert_int_equal(access_rights(&r, &member), R | W);
	assert_int_equal(access_rights(&r, &stranger), 0);
	assert_int_equal(access_grant(&r, PANDO_GRANT_GID, 30, R), 0);
	assert_int_equal(access_rights(&r, &stranger), R);
	assert_int_equal(access_grant(&r, PANDO_GRANT_GID, 30, R | W), 0);
	assert_int_equal(r.grant_count, 2); /* changed, not added */
	assert_int_equal(access_rights(&r, &stranger), R | W);
	assert_int_equal(access_grant(&r, PANDO_GRANT_UID, 11, 0), 0);
	assert_int_equal(r.grant_count, 1);
	assert_int_equal(access_rights(&r, &member), R);
	assert_int_equal(access_grant(&r, PANDO_GRANT_UID, 99, 0), 0); /* was not there: fine */
	assert_int_equal(r.grant_count, 1);
	assert_int_equal(r.grants[1].kind, 0);
}

static void the_list_has_an_end(void **state)
{
	struct region_record r = {.uid = 10};

	(void)state;
	for (uint32_t i = 0; i < REGION_MAX_GRANTS; i++)
		assert_int_equal(access_grant(&r, PANDO_GRANT_UID, i, R), 0);
	assert_int_equal(access_grant(&r, PANDO_GRANT_UID, 1000, R), -ENOSPC);
	assert_int_equal(access_grant(&r, PANDO_GRANT_UID, 7, R | W), 0);
	assert_int_equal(access_grant(&r, PANDO_GRANT_UID, 3, 0), 0);
	assert_int_equal(access_grant(&r, PANDO_GRANT_UID, 1000, R), 0);
}

static void owners_and_root_own(void **state)
{
	struct region_record r = {.uid = 10, .mode = 0666};
	struct identity owner = peer(10, 1), root = peer(0, 0), other = peer(11, 1);

	(void)state;
	assert_true(access_owns(&r, &owner));
	assert_true(access_owns(&r, &root));
	assert_false(access_owns(&r, &other));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_class_that_fits_decides),
		cmocka_unit_test(supplementary_groups_count),
		cmocka_unit_test(the_list_adds_to_the_mode),
		cmocka_unit_test(the_list_has_an_end),
		cmocka_unit_test(owners_and_root_own),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
