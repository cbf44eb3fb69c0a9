/* SPDX-License-Identifier: BSD-2-Clause */
/* Accounts per user: limits, exemptions, and that nothing is booked on refusal. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "broker/quota.h"

static struct broker_config config;
static struct quota q;

static int setup(void **state)
{
	(void)state;
	memset(&config, 0, sizeof(config));
	config.owner = 500;
	config.quota = (struct config_quota){.memory = 1000, .regions = 2, .clients = 3};
	config.users[0] = (struct config_user_quota){.uid = 7, .quota = {.memory = 50}};
	config.users[1] = (struct config_user_quota){.uid = 0, .quota = {.regions = 1}};
	config.user_count = 2;
	quota_init(&q, &config);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	quota_deinit(&q);
	return 0;
}

static void limits_hold_to_the_byte(void **state)
{
	(void)state;
	assert_int_equal(quota_charge(&q, 1, 1001, 1, 0), -EDQUOT);
	assert_int_equal(quota_of(&q, 1).memory, 0);
	assert_int_equal(quota_charge(&q, 1, 1000, 1, 0), 0);
	assert_int_equal(quota_charge(&q, 1, 1, 0, 0), -EDQUOT);
	assert_int_equal(quota_charge(&q, 1, UINT64_MAX, 0, 0), -EDQUOT);
	assert_int_equal(quota_charge(&q, 1, 0, 1, 0), 0);
	assert_int_equal(quota_charge(&q, 1, 0, 1, 0), -EDQUOT);
	assert_int_equal(quota_charge(&q, 1, 0, 0, 3), 0);
	assert_int_equal(quota_charge(&q, 1, 0, 0, 1), -EDQUOT);
	assert_non_null(strstr(pando_strerror_last(), "user 1 has 3 clients"));
	assert_int_equal(quota_charge(&q, 2, 1000, 2, 3), 0); /* another user is another account */
	quota_discharge(&q, 1, 1, 0, 0);
	assert_int_equal(quota_charge(&q, 1, 1, 0, 0), 0);
	quota_discharge(&q, 1, 1000, 2, 3);
	quota_discharge(&q, 2, 1000, 2, 3);
	assert_int_equal(quota_of(&q, 1).regions, 0);
}

static void a_refusal_books_nothing(void **state)
{
	(void)state;
	assert_int_equal(quota_charge(&q, 1, 10, 3, 0), -EDQUOT); /* the regions are too many */
	assert_int_equal(quota_of(&q, 1).memory, 0);
	assert_int_equal(quota_of(&q, 1).regions, 0);
}

static void entries_for_users_win(void **state)
{
	(void)state;
	assert_int_equal(quota_charge(&q, 7, 51, 0, 0), -EDQUOT);
	assert_int_equal(quota_charge(&q, 7, 50, 100, 100), 0);
	assert_int_equal(quota_charge(&q, 500, 1u << 30, 100, 100), 0); /* the broker's own user */
	assert_int_equal(quota_charge(&q, 0, 1u << 30, 1, 100), 0);
	assert_int_equal(quota_charge(&q, 0, 0, 1, 0), -EDQUOT); /* root, because it is named */
	quota_discharge(&q, 7, 50, 100, 100);
	quota_discharge(&q, 500, 1u << 30, 100, 100);
	quota_discharge(&q, 0, 1u << 30, 1, 100);
}

static void what_is_found_is_booked_over_the_limit(void **state)
{
	(void)state;
	assert_int_equal(quota_charge_found(&q, 1, 5000, 9, 9), 0);
	assert_int_equal(quota_charge(&q, 1, 1, 0, 0), -EDQUOT);
	quota_discharge(&q, 1, 4500, 9, 9);
	assert_int_equal(quota_charge(&q, 1, 500, 0, 0), 0);
	quota_discharge(&q, 1, 1000, 0, 0);
}

static void many_users(void **state)
{
	(void)state;
	for (uid_t uid = 1000; uid < 2000; uid++)
		assert_int_equal(quota_charge(&q, uid, uid % 1000, 1, 1), 0);
	for (uid_t uid = 1000; uid < 2000; uid++)
		assert_int_equal(quota_of(&q, uid).memory, uid % 1000);
	for (uid_t uid = 1999; uid >= 1000; uid--)
		quota_discharge(&q, uid, uid % 1000, 1, 1);
	for (size_t i = 0; i < sizeof(q.buckets) / sizeof(q.buckets[0]); i++)
		assert_null(q.buckets[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(limits_hold_to_the_byte, setup, teardown),
		cmocka_unit_test_setup_teardown(a_refusal_books_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(entries_for_users_win, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_found_is_booked_over_the_limit, setup,
						teardown),
		cmocka_unit_test_setup_teardown(many_users, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
