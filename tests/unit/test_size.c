/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sizes: what is read, what is refused, what is written, and that what is written can be read
 * again.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/size.h"

static void reads(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"4096", 4096},
		{"1B", 1},
		{"64M", 64ull << 20},
		{"64mb", 64ull << 20},
		{"64 MiB", 64ull << 20},
		{"1.5g", 3ull << 29},
		{"0.000001E", 1152921504606ull},
		{"2T", 2ull << 40},
		{"0x200000", 0x200000},
		{"15.5E", 15ull << 60 | 1ull << 59},
		{"18446744073709551615", UINT64_MAX},
	};
	uint64_t bytes;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		bytes = 1;
		assert_int_equal(pando__size_parse(good[i].text, &bytes), 0);
		assert_true(bytes == good[i].bytes);
	}
}

static void refuses(void **state)
{
	static const char *const bad[] = {"",	" ",   "-1",	"+1",  "M",  "1x",  "1.",
					  ".5", "1BB", "3KiBx", "1 2", "0x", "0x1M"};
	uint64_t bytes = 77;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(pando__size_parse(bad[i], &bytes), -EINVAL);
	assert_int_equal(pando__size_parse("16E", &bytes), -ERANGE);
	assert_int_equal(pando__size_parse("18446744073709551616", &bytes), -ERANGE);
	assert_int_equal(bytes, 77);
}

static void writes(void **state)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} all[] = {
		{0, "0 B"},
		{1023, "1023 B"},
		{1024, "1 KiB"},
		{1536, "1.50 KiB"},
		{3ull << 29, "1.50 GiB"},
		{(10ull << 30) + (512ull << 20), "10.5 GiB"},
		{(100ull << 30) + (512ull << 20), "100 GiB"},
		{(1ull << 30) - 1, "1023 MiB"},
		{UINT64_MAX, "15.9 EiB"},
	};
	char buf[PANDO__SIZE_TEXT];
	uint64_t again;

	(void)state;
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		assert_string_equal(pando__size_format(all[i].bytes, buf), all[i].text);
	for (unsigned int shift = 0; shift < 64; shift++) {
		assert_int_equal(pando__size_parse(pando__size_format(1ull << shift, buf), &again),
				 0);
		assert_true(again == 1ull << shift);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads),
		cmocka_unit_test(refuses),
		cmocka_unit_test(writes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
