/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A program that is not linked with libpando.so, but loads it while it runs, from a thread, and uses
 * a heap: argv[1] is the library. Thread-local storage must have room, and the program's own malloc
 * must stay what it was.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pando/pando.h>

#define OBJECTS 500

static const char *path;

#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static void *load(void *library, const char *name)
{
	void *symbol = dlsym(library, name);

	if (!symbol) {
		fprintf(stderr, "%s: %s\n", name, dlerror());
		exit(1);
	}
	return symbol;
}

static void *use(void *arg)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *object[OBJECTS];
	int (*connect)(struct pando **, const char *);
	int (*open)(struct pando *, const char *, unsigned int, const struct pando_region_options *,
		    size_t, struct pando_region **);
	void *(*alloc)(struct pando_region *, size_t);
	void (*give)(struct pando_region *, void *);
	void (*disconnect)(struct pando *);
	struct pando_region_options options = {.size = 256 << 20};
	struct pando_region *r;
	struct pando *p;
	Dl_info where;

	(void)arg;
	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	*(void **)&connect = load(library, "pando_connect");
	*(void **)&open = load(library, "pando_region_open_sized");
	*(void **)&alloc = load(library, "pando_alloc");
	*(void **)&give = load(library, "pando_free");
	*(void **)&disconnect = load(library, "pando_disconnect");
	MUST(connect(&p, NULL) == 0);
	MUST(open(p, "loaded", PANDO_CREATE | PANDO_TRANSIENT | PANDO_HEAP, &options,
		  sizeof(options), &r) == 0);
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < OBJECTS; i++) {
			object[i] = alloc(r, 1 + i * 97);
			MUST(object[i]);
			memset(object[i], (int)i, 1 + i * 97);
		}
		for (size_t i = 0; i < OBJECTS; i++) {
			MUST(((unsigned char *)object[i])[i * 97] == (unsigned char)i);
			give(r, object[i]);
		}
	}
	/* No function of the C library is found in it. */
	MUST(dladdr(load(library, "malloc"), &where) && !strstr(where.dli_fname, "libpando"));
	disconnect(p);
	return NULL;
}

int main(int argc, char *argv[])
{
	void *before = dlsym(RTLD_DEFAULT, "malloc"), *p = malloc(100);
	pthread_t thread;

	MUST(argc == 2 && p);
	path = argv[1];
	memset(p, 1, 100);
	MUST(pthread_create(&thread, NULL, use, NULL) == 0);
	MUST(pthread_join(thread, NULL) == 0);
	MUST(dlsym(RTLD_DEFAULT, "malloc") == before);
	p = realloc(p, 100000);
	MUST(p && ((char *)p)[99] == 1);
	free(p);
	puts("loaded and used");
	return 0;
}
