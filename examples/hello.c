/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The smallest complete program: a region, a raw pointer into it, and processes that share both.
 *
 * Run it; then run it again in another terminal while the first one waits: both see one counter at
 * one address. With no broker running, an embedded one serves this program and its children.
 */
#include <pando/pando.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	struct pando *p;
	struct pando_region *r;

	if (pando_connect(&p, NULL) < 0 ||
	    pando_region_open(p, "hello", PANDO_CREATE | PANDO_TRANSIENT,
			      &(struct pando_region_options){.size = 1 << 20}, &r) < 0) {
		fprintf(stderr, "hello: %s\n", pando_strerror_last());
		return 1;
	}
	unsigned long *counter = pando_region_base(r); /* the same address in every process */

	for (int i = 0; i < 4; i++)
		if (fork() == 0) { /* the child is a client of its own; the pointer stays valid */
			__atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
			_exit(0);
		}
	while (wait(NULL) > 0)
		;
	printf("%p holds %lu\n", (void *)counter, *counter);
	pando_disconnect(p);
	return 0;
}
