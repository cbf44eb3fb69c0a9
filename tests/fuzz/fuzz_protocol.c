/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fuzzes the protocol's parser in both directions: the first byte picks the direction and the count of
 * descriptors. Whatever is accepted must keep the promises of protocol.h, which are checked here.
 */
#include <stdlib.h>
#include <string.h>

#include "protocol/protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int condition)
{
	if (!condition)
		abort();
}

static void check_accepted(const struct pando__msg *m)
{
	switch (m->header.type) {
	case PANDO__MSG_OPEN:
		must(pando__region_name_ok(m->open.name));
		break;
	case PANDO__MSG_HELLO:
		must(strnlen(m->hello.program, sizeof(m->hello.program)) <
		     sizeof(m->hello.program));
		break;
	case PANDO__MSG_REGIONS:
		must(m->regions.count <= PANDO__PROTO_BATCH);
		break;
	case PANDO__MSG_CLIENT_LIST:
		must(m->clients.count <= PANDO__PROTO_BATCH);
		break;
	case PANDO__MSG_ERROR:
		must(m->error.error > 0);
		must(strnlen(m->error.text, sizeof(m->error.text)) < sizeof(m->error.text));
		break;
	default:
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct pando__msg m;
	char why[128] = "";
	int rc;

	if (size < 1)
		return 0;
	rc = pando__msg_parse((data[0] & 1) ? PANDO__TO_CLIENT : PANDO__TO_BROKER, data + 1,
			      size - 1, (data[0] >> 1) & 3, &m, why, sizeof(why));
	if (rc == 0) {
		must((int)m.header.length ==
		     (int)sizeof(m.header) + pando__msg_payload(m.header.type));
		check_accepted(&m);
	} else {
		must(why[0] != '\0' && strnlen(why, sizeof(why)) < sizeof(why));
	}
	return 0;
}
