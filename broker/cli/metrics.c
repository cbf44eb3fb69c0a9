/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando metrics: the broker's counters as OpenMetrics text, for a monitoring system's collector.
 *
 * Without a broker the output is pando_up 0, complete, and the exit code still says what is wrong:
 * a collector that only reads sees the outage too.
 *
 * Of the format: a family is introduced by TYPE, UNIT (the name ends in it) and HELP; a counter's
 * sample has the suffix _total, an info's _info; the text ends with "# EOF". Region names need no
 * escaping: their alphabet has no quote, backslash or newline.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/backend.h"
#include "cli.h"
#include "client.h"

static void family(const char *name, const char *type, const char *unit, const char *help)
{
	printf("# TYPE %s %s\n", name, type);
	if (unit)
		printf("# UNIT %s %s\n", name, unit);
	printf("# HELP %s %s\n", name, help);
}

static void gauge(const char *name, const char *unit, const char *help, uint64_t value)
{
	family(name, "gauge", unit, help);
	printf("%s %" PRIu64 "\n", name, value);
}

static void counter(const char *name, const char *help, uint64_t value)
{
	family(name, "counter", NULL, help);
	printf("%s_total %" PRIu64 "\n", name, value);
}

static void seconds(const char *name, const char *help, uint64_t ns)
{
	family(name, "gauge", "seconds", help);
	printf("%s %" PRIu64 ".%09" PRIu64 "\n", name, ns / 1000000000u, ns % 1000000000u);
}

static void broker_metrics(const struct pando_broker_info *b)
{
	gauge("pando_clients", NULL, "Processes connected to the broker.", b->clients);
	gauge("pando_regions", NULL, "Regions, destroyed ones that are still in use included.",
	      b->regions);
	gauge("pando_committed_bytes", "bytes", "Memory of all regions.", b->committed_bytes);
	gauge("pando_window_size_bytes", "bytes", "Address space in which regions are placed.",
	      b->window_size);
	counter("pando_broker_restarts", "Times that the broker process was replaced.",
		b->epoch > 0 ? b->epoch - 1 : 0);
	counter("pando_clients_connected", "Clients that ever connected.", b->clients_total);
	counter("pando_client_deaths", "Clients that ended without leaving.", b->deaths_total);
	counter("pando_requests", "Requests answered.", b->requests_total);
	counter("pando_request_errors", "Requests answered with an error.", b->errors_total);
	counter("pando_refused", "Requests refused for lack of rights or quota.", b->refused_total);
	seconds("pando_reap_last_seconds",
		"From noticing the last death to the end of its clean-up.", b->reap_ns_last);
	seconds("pando_reap_max_seconds", "The longest such clean-up.", b->reap_ns_max);
	counter("pando_heap_reaps", "Times that a dead client's part of a heap was taken back.",
		b->heap_reaps_total);
	counter("pando_heap_reaped_objects", "Objects that were freed in doing so.",
		b->heap_objects_total);
	family("pando_heap_reaped_bytes", "counter", "bytes", "Bytes of these objects.");
	printf("pando_heap_reaped_bytes_total %" PRIu64 "\n", b->heap_bytes_total);
	seconds("pando_heap_reap_last_seconds", "How long the last one took.",
		b->heap_reap_ns_last);
	seconds("pando_heap_reap_max_seconds", "The longest one.", b->heap_reap_ns_max);
	counter("pando_grafts", "Buffers handed over from process to process.", b->grafts_total);
	family("pando_grafted_bytes", "counter", "bytes", "Bytes of these buffers.");
	printf("pando_grafted_bytes_total %" PRIu64 "\n", b->grafts_bytes_total);
	counter("pando_grafts_moved", "Those whose pages were moved (process_vm_mmap).",
		b->grafts_mmap_total);
	counter("pando_grafts_refused", "Buffers that their receivers refused.",
		b->grafts_refused_total);
	counter("pando_grafts_lost", "Buffers that waited when their receivers ended.",
		b->grafts_lost_total);
	counter("pando_grafts_cleared", "Slots that were taken back from senders that ended.",
		b->grafts_cleared_total);
	gauge("pando_grafts_waiting", NULL, "Buffers that wait to be accepted.", b->grafts_waiting);
	gauge("pando_grafts_waiting_bytes", "bytes", "Bytes of these.", b->grafts_waiting_bytes);
	gauge("pando_grafts_held", NULL, "Buffers that were accepted and not released.",
	      b->grafts_held);
	gauge("pando_grafts_held_bytes", "bytes", "Bytes of these.", b->grafts_held_bytes);
	gauge("pando_quota_memory_bytes", "bytes",
	      "Memory that one user may have in regions; 0: no limit.", b->quota_memory);
	gauge("pando_quota_regions", NULL, "Regions that one user may have; 0: no limit.",
	      b->quota_regions);
	gauge("pando_quota_clients", NULL, "Clients that one user may have; 0: no limit.",
	      b->quota_clients);
	gauge("pando_draining", NULL, "1 while the broker is shutting down.", b->drain);
}

struct list {
	struct pando_region_info *info;
	size_t n;
};

/* All regions at once: a family's samples must stand together. Returns 0 or a negative errno. */
static int load(struct pando *p, struct list *list)
{
	uint64_t cursor = 0;
	int n;

	memset(list, 0, sizeof(*list));
	do {
		void *more = realloc(list->info, (list->n + 64) * sizeof(*list->info));

		if (!more)
			return -ENOMEM;
		list->info = more;
		n = pando_region_list(p, &cursor, list->info + list->n, 64);
		list->n += n > 0 ? (size_t)n : 0;
	} while (n > 0);
	return n;
}

static void per_region(const struct list *list, const char *name, const char *unit,
		       const char *help, uint64_t (*value)(const struct pando_region_info *))
{
	family(name, "gauge", unit, help);
	for (size_t i = 0; i < list->n; i++)
		printf("%s{region=\"%s\",id=\"%" PRIu64 "\",backend=\"%s\",uid=\"%" PRIu32
		       "\"} %" PRIu64 "\n",
		       name, list->info[i].name, list->info[i].id,
		       pando_backend_name(list->info[i].backend), list->info[i].uid,
		       value(&list->info[i]));
}

static uint64_t region_size(const struct pando_region_info *r)
{
	return r->size;
}

static uint64_t region_max(const struct pando_region_info *r)
{
	return r->max_size;
}

static uint64_t region_clients(const struct pando_region_info *r)
{
	return r->clients;
}

static uint64_t region_age(const struct pando_region_info *r)
{
	uint64_t now = pando__now_ns(CLOCK_BOOTTIME);

	return now > r->created_ns ? (now - r->created_ns) / 1000000000u : 0;
}

static void region_metrics(const struct list *list)
{
	if (list->n == 0)
		return;
	per_region(list, "pando_region_size_bytes", "bytes", "Memory of a region.", region_size);
	per_region(list, "pando_region_max_size_bytes", "bytes", "How far a region can grow.",
		   region_max);
	per_region(list, "pando_region_clients", NULL, "Processes attached to a region.",
		   region_clients);
	per_region(list, "pando_region_age_seconds", "seconds", "Time since a region was made.",
		   region_age);
}

static void machine_metrics(void)
{
	family("pando_backend_available_bytes", "gauge", "bytes",
	       "Memory that a backend could commit now.");
	for (unsigned int i = 0; pando__backends[i]; i++) {
		struct pando__backend_probe probe;

		pando__backends[i]->probe(&probe);
		printf("pando_backend_available_bytes{backend=\"%s\"} %" PRIu64 "\n",
		       pando__backends[i]->name, probe.usable ? probe.available : 0);
	}
}

static int run_metrics(int argc, char **argv)
{
	static const struct option longs[] = {CLI_COMMON_LONG};
	struct pando_broker_info info;
	struct list list = {0};
	struct pando *p = NULL;
	int code, rc;

	while (cli_option(&cli_metrics, argc, argv, CLI_COMMON_SHORT, longs) != -1)
		;
	cli_arguments(&cli_metrics, argc, 0, 0);
	code = cli_connect(&p);
	if (code == CLI_OK) {
		rc = pando_broker_info(p, &info);
		if (rc == 0)
			rc = load(p, &list);
		if (rc < 0)
			code = cli_fail_last(rc);
		pando_disconnect(p);
	}
	gauge("pando_up", NULL, "1 if the broker answered.", code == CLI_OK);
	family("pando_build", "info", NULL, "Versions of the command and of the broker.");
	printf("pando_build_info{version=\"%s\",broker=\"%s\"} 1\n", pando_version(),
	       code == CLI_OK ? info.version : "");
	if (code == CLI_OK) {
		broker_metrics(&info);
		region_metrics(&list);
	}
	machine_metrics();
	puts("# EOF");
	free(list.info);
	if (fflush(stdout) != 0)
		return cli_fail(CLI_FAILED, "cannot write the output");
	return code;
}

const struct cli_verb cli_metrics = {
	.name = "metrics",
	.args = "",
	.summary = "print counters as OpenMetrics text",
	.help = "Prints the broker's counters and each region's sizes as OpenMetrics text. Without "
		"a broker,\n"
		"pando_up is 0 and the exit status is 3.\n",
	.run = run_metrics,
};
