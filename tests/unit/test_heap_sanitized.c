/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A program that does something wrong with an object of a debug heap, for AddressSanitizer or
 * Valgrind to find: test_heap_sanitized.sh runs it and reads what they say.
 *
 *	ACTION	right		nothing wrong
 *		read-freed	reads an object that it has freed
 *		write-beyond	writes behind the end of one
 *		read-new	decides on a byte that was never written (Valgrind)
 *		given-back	frees so much that pages leave, and looks there: nothing wrong
 *		forked		a child reads what is free in its parent: nothing wrong
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_region.h"

static struct fake_heap heap;
static struct pando_region region;
static volatile char sink;

static void given_back(void)
{
	static char *p[64];

	for (unsigned int i = 0; i < 64; i++)
		p[i] = pando_alloc(&region, 20000);
	for (unsigned int i = 0; i < 64; i++)
		pando_free(&region, p[i]);
	pando_heap_trim(&region);
	/* Memory that others may have by now, at addresses of ours. */
	for (unsigned int i = 0; i < 64; i++)
		sink = p[i][100];
}

static int forked(char *p)
{
	int status;
	pid_t pid;

	pando_free(&region, p);
	pid = fork();
	if (pid == 0) {
		pando__front_abandon(region.gate.front); /* as libshm does in a child */
		sink = p[0];
		_exit(0);
	}
	return waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 3;
}

int main(int argc, char **argv)
{
	const char *action = argc > 1 ? argv[1] : "right";
	volatile size_t beyond = 104;
	char *p;
	int rc = 0;

	setenv("PANDO_HEAP_DEBUG", "all", 1);
	fake_heap_init(&heap, 128ull << 20, 128ull << 20, false);
	fake_region_init(&region, &heap, 0);
	p = pando_alloc(&region, 100);
	if (!p)
		return 2;
	if (strcmp(action, "read-freed") == 0) {
		pando_free(&region, p);
		sink = p[50];
	} else if (strcmp(action, "write-beyond") == 0) {
		p[beyond] = 1;
	} else if (strcmp(action, "read-new") == 0) {
		if (p[3] == 7)
			puts("seven");
	} else if (strcmp(action, "given-back") == 0) {
		given_back();
	} else if (strcmp(action, "forked") == 0) {
		rc = forked(p);
	} else {
		memset(p, 0, 100);
		p = pando_realloc(&region, p, 5000);
		memset(p, 0, 5000);
		pando_free(&region, p);
	}
	fake_region_deinit(&region);
	fake_heap_deinit(&heap);
	return rc;
}
