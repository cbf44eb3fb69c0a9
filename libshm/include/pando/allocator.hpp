/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Containers of C++ on a region's heap (C++17, header only).
 *
 *	pando::allocator<T>		for the containers of std
 *	pando::memory_resource		for those of std::pmr
 *	pando::create, pando::destroy	one object
 *
 * Pointers into a region are valid in every process. So a container that lies in the region, with
 * its elements there, can be used by all of them, provided that everything in it is valid
 * everywhere: its elements, its functions (no std::function, nothing virtual), and its allocator. A
 * handle (struct pando_region *) is each process's own; therefore an allocator holds the region's
 * address, and each process has a table that leads from the address to its handle. Constructing an
 * allocator from a handle enters it there, and so does pando::bind(): call that before changing a
 * container that another process has made.
 *
 * The table is 256 pairs that are filled and never emptied, without a lock: a forked child finds it
 * whole. A region's address is a multiple of 1 GiB, so the allocator keeps its one bit of choice in
 * the same word.
 *
 * `pando` is a struct of the C interface, so it cannot be a namespace: what would be in one are
 * members of that struct, which has nothing else here and no objects.
 *
 * Nothing here makes a container safe against concurrent changes, or against the death of a process
 * in the middle of one: the heap stays sound, the container may not.
 */
#ifndef PANDO_ALLOCATOR_HPP
#define PANDO_ALLOCATOR_HPP

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory_resource>
#include <new>
#include <type_traits>
#include <utility>

#include <pando/heap.h>

struct pando {
	pando() = delete;

	/* How long an object lives at most: as its process, or until somebody frees it. */
	enum class keep { process, region };

	/* What allocating throws: the errno and the sentence of the C interface. */
	class alloc_error : public std::bad_alloc
	{
	      public:
		alloc_error(int code, const char *sentence) noexcept : code_(code)
		{
			std::snprintf(text_, sizeof(text_), "%s", sentence);
		}
		int code() const noexcept
		{
			return code_;
		}
		const char *what() const noexcept override
		{
			return text_;
		}

	      private:
		int code_;
		char text_[256];
	};

	/* From now on the region's address leads to this handle, in this process. */
	static void bind(pando_region *r)
	{
		binding *b = find(base_of(r), true);

		if (!b)
			throw alloc_error(
				ENOSPC, "this process has bound regions at 256 addresses already");
		/* Pairs with the load in handle_at(). */
		b->handle.store(r, std::memory_order_release);
	}

	/* Before the region is closed. What is deallocated there afterwards stays as it is. */
	static void unbind(pando_region *r) noexcept
	{
		binding *b = find(base_of(r), false);

		if (b)
			b->handle.compare_exchange_strong(r, nullptr);
	}

	template <class T> class allocator
	{
	      public:
		using value_type = T;
		using propagate_on_container_copy_assignment = std::false_type;
		using propagate_on_container_move_assignment = std::true_type;
		using propagate_on_container_swap = std::true_type;
		using is_always_equal = std::false_type;

		explicit allocator(pando_region *r, keep k = keep::process)
		    : where_(base_of(r) | static_cast<std::uintptr_t>(k))
		{
			bind(r);
		}
		allocator(const allocator &) noexcept = default;
		allocator &operator=(const allocator &) noexcept = default;
		template <class U>
		allocator(const allocator<U> &other) noexcept : where_(other.where_)
		{
		}

		[[nodiscard]] T *allocate(std::size_t n)
		{
			if (n > std::numeric_limits<std::size_t>::max() / sizeof(T))
				throw std::bad_array_new_length();
			return static_cast<T *>(
				take(region(), lifetime(), n * sizeof(T), alignof(T)));
		}
		void deallocate(T *p, std::size_t) noexcept
		{
			give(region(), p);
		}

		/* This process's handle; NULL if the region is not bound here. */
		pando_region *region() const noexcept
		{
			return handle_at(where_ & ~std::uintptr_t(1));
		}
		keep lifetime() const noexcept
		{
			return static_cast<keep>(where_ & 1);
		}

		/* What one has allocated, an equal one may free. */
		template <class U> bool operator==(const allocator<U> &other) const noexcept
		{
			return (where_ | 1) == (other.where_ | 1);
		}
		template <class U> bool operator!=(const allocator<U> &other) const noexcept
		{
			return !(*this == other);
		}

	      private:
		template <class U> friend class pando::allocator;
		std::uintptr_t where_; /* the region's base, and in its lowest bit the lifetime */
	};

	/* Lies in this process's memory: containers that point to it cannot be used by others. */
	class memory_resource : public std::pmr::memory_resource
	{
	      public:
		explicit memory_resource(pando_region *r, keep k = keep::process)
		    : region_(r), keep_(k)
		{
		}
		pando_region *region() const noexcept
		{
			return region_;
		}

	      private:
		void *do_allocate(std::size_t bytes, std::size_t alignment) override
		{
			return take(region_, keep_, bytes, alignment);
		}
		void do_deallocate(void *p, std::size_t, std::size_t) override
		{
			give(region_, p);
		}
		bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override
		{
#if defined(__GXX_RTTI) || defined(__cpp_rtti)
			const auto *same = dynamic_cast<const memory_resource *>(&other);

			return same && same->region_ == region_;
#else
			return this == &other;
#endif
		}

		pando_region *region_;
		keep keep_;
	};

	/* Makes a T in the region. Throws what T's constructor throws, with the memory freed. */
	template <class T, class... Args>
	[[nodiscard]] static T *create(pando_region *r, keep k, Args &&...args)
	{
		void *p = take(r, k, sizeof(T), alignof(T));

		try {
			return ::new (p) T(std::forward<Args>(args)...);
		} catch (...) {
			pando_free(r, p);
			throw;
		}
	}

	/* Ends what create() has made, in any process. */
	template <class T> static void destroy(pando_region *r, T *p) noexcept
	{
		if (!p)
			return;
		p->~T();
		pando_free(r, p);
	}

      private:
	struct binding {
		std::atomic<std::uintptr_t> base; /* 0: not used yet; never changes after that */
		std::atomic<pando_region *> handle; /* NULL: not bound at present */
	};
	static constexpr std::size_t bindings_max = 256;

	/* One table for the process, whatever libraries include this. Zero before anything runs. */
#if defined(__GNUC__)
	__attribute__((visibility("default")))
#endif
	static inline binding bindings[bindings_max];

	static std::uintptr_t base_of(const pando_region *r) noexcept
	{
		return reinterpret_cast<std::uintptr_t>(pando_region_base(r));
	}

	/* The entry of that address, made if there is room; NULL: there is none. */
	static binding *find(std::uintptr_t base, bool make) noexcept
	{
		const std::size_t first = static_cast<std::size_t>(base >> 30) % bindings_max;

		for (std::size_t i = 0; i < bindings_max; i++) {
			binding &b = bindings[(first + i) % bindings_max];
			std::uintptr_t seen = b.base.load(std::memory_order_acquire);

			if (seen == 0) {
				if (!make)
					return nullptr;
				if (b.base.compare_exchange_strong(seen, base))
					return &b;
			}
			if (seen == base)
				return &b;
		}
		return nullptr;
	}

	static pando_region *handle_at(std::uintptr_t base) noexcept
	{
		const binding *b = find(base, false);

		/* Pairs with the store in bind(): who sees the handle sees what it points to. */
		return b ? b->handle.load(std::memory_order_acquire) : nullptr;
	}

	static void *take(pando_region *r, keep k, std::size_t size, std::size_t alignment)
	{
		void *p;
		int rc;

		if (!r)
			throw alloc_error(
				ENOENT,
				"the region is not bound in this process: call pando::bind()");
		p = alignment > PANDO_HEAP_GRANULE ? pando_alloc_aligned(r, alignment, size)
						   : pando_alloc(r, size);
		if (!p)
			throw alloc_error(errno, pando_strerror_last());
		if (k == keep::region) {
			rc = pando_share(r, p);
			if (rc < 0) {
				alloc_error e(-rc, pando_strerror_last());

				pando_free(r, p);
				throw e;
			}
		}
		return p;
	}

	static void give(pando_region *r, void *p) noexcept
	{
		if (r)
			pando_free(r, p);
	}
};

#endif
