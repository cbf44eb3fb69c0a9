/* SPDX-License-Identifier: BSD-2-Clause */
/* Boost.Interprocess under load.c. The name is gone before the first worker is there. */
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <unistd.h>

#include <boost/interprocess/managed_shared_memory.hpp>

namespace ipc = boost::interprocess;

static std::unique_ptr<ipc::managed_shared_memory> heap;

extern "C" {

void peer_init(void)
{
	const std::string name = "pando-bench-" + std::to_string(getpid());

	try {
		heap = std::make_unique<ipc::managed_shared_memory>(ipc::create_only, name.c_str(),
								    std::size_t(1) << 30);
	} catch (const ipc::interprocess_exception &e) {
		std::fprintf(stderr, "load-boost: %s\n", e.what());
		std::exit(2);
	}
	ipc::shared_memory_object::remove(name.c_str());
}

void *peer_alloc(std::size_t size)
{
	return heap->allocate(size, std::nothrow);
}

void peer_free(void *p)
{
	if (p)
		heap->deallocate(p);
}
}
