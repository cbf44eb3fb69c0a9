/* SPDX-License-Identifier: BSD-2-Clause */
#include "directory_boost.h"

#include <memory>
#include <string>
#include <unistd.h>

#include <boost/interprocess/managed_shared_memory.hpp>

namespace ipc = boost::interprocess;

static std::unique_ptr<ipc::managed_shared_memory> segment;

extern "C" {

bool boost_begin(void)
{
	const std::string name = "pando-bench-names-" + std::to_string(getpid());

	try {
		segment = std::make_unique<ipc::managed_shared_memory>(
			ipc::create_only, name.c_str(), std::size_t(128) << 20);
	} catch (const ipc::interprocess_exception &) {
		return false;
	}
	return ipc::shared_memory_object::remove(name.c_str());
}

void boost_end(void)
{
	segment.reset();
}

bool boost_construct(const char *name)
{
	return segment->construct<int>(name, std::nothrow)(1) != nullptr;
}

bool boost_find(const char *name)
{
	return segment->find<int>(name).first != nullptr;
}
}
