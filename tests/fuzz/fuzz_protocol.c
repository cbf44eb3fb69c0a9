/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fuzzes the protocol's parser in both directions. The first byte picks the direction, the count of
 * descriptors and whether the packet is taken as it is, or as a payload behind a sound header of
 * the type in the second byte (which reaches the checks of content quickly). Whatever is accepted
 * must keep the promises of protocol.h, which are checked here.
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
	case PANDO__MSG_GRAFT_LISTEN:
		must(m->graft_listen.size > 0 &&
		     m->graft_listen.base + m->graft_listen.size > m->graft_listen.base);
		break;
	case PANDO__MSG_GRAFT_SEND:
		must((m->graft_send.way == PANDO_GRAFT_MEMFD) == (m->header.fds == 1));
		break;
	case PANDO__MSG_GRAFTED:
		must((m->grafted.way == PANDO_GRAFT_MEMFD) == (m->header.fds == 1));
		must(m->grafted.bytes > 0 &&
		     m->grafted.address + pando__graft_pages(m->grafted.bytes) >
			     m->grafted.address);
		break;
	default:
		break;
	}
}

/* A packet with a sound header and the given bytes as payload; returns its length. */
static size_t with_header(struct pando__msg *packet, unsigned int type, const uint8_t *data,
			  size_t size)
{
	int payload = pando__msg_payload(type);

	if (payload < 0)
		return 0;
	pando__msg_init(packet, type, type == PANDO__MSG_NOTICE ? 0 : 1);
	if (size > (size_t)payload)
		size = (size_t)payload;
	memcpy((char *)packet + sizeof(packet->header), data, size);
	return packet->header.length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct pando__msg m, made;
	const void *packet;
	size_t length;
	char why[128] = "";
	int rc;

	if (size < 2)
		return 0;
	if (data[0] & 0x80) {
		packet = &made;
		length = with_header(&made, data[1] & 0x7f, data + 2, size - 2);
		made.header.fds = (data[0] >> 1) & 3;
	} else {
		packet = data + 1;
		length = size - 1;
	}
	rc = pando__msg_parse((data[0] & 1) ? PANDO__TO_CLIENT : PANDO__TO_BROKER, packet, length,
			      (data[0] >> 1) & 3, &m, why, sizeof(why));
	if (rc == 0) {
		must((int)m.header.length ==
		     (int)sizeof(m.header) + pando__msg_payload(m.header.type));
		check_accepted(&m);
	} else {
		must(why[0] != '\0' && strnlen(why, sizeof(why)) < sizeof(why));
	}
	return 0;
}
