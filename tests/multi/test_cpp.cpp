/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando/allocator.hpp: containers of std and std::pmr on a region's heap, alone, across a fork(),
 * and between processes that attached by themselves.
 */
extern "C" {
#include "harness.h"
}

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <numeric>
#include <scoped_allocator>
#include <set>
#include <string>
#include <sys/wait.h>
#include <unordered_map>
#include <vector>

#include <pando/allocator.hpp>

namespace
{

constexpr std::uint64_t MIB = 1u << 20;
constexpr pando::keep ours = pando::keep::process, everybodys = pando::keep::region;

template <class T> using alloc = pando::allocator<T>;
using text = std::basic_string<char, std::char_traits<char>, alloc<char>>;
/* The scoped adaptor hands the map's allocator on to the strings and vectors in it. */
using numbers = std::vector<int, alloc<int>>;
using index_type = std::map<text, numbers, std::less<text>,
			    std::scoped_allocator_adaptor<alloc<std::pair<const text, numbers>>>>;

pando_region *make(pando *p, const char *name, std::uint64_t size)
{
	pando_region_options o = {};
	pando_region *r;

	o.size = size;
	CHECK_OK(pando_region_open_sized(p, name, PANDO_CREATE | PANDO_TRANSIENT | PANDO_HEAP, &o,
					 sizeof(o), &r));
	return r;
}

bool in_region(pando_region *r, const void *p)
{
	const char *base = static_cast<const char *>(pando_region_base(r));

	return p >= base && p < base + pando_region_size(r);
}

std::uint64_t objects(pando_region *r)
{
	struct pando_heap_stat st;

	CHECK_OK(pando_heap_stat_sized(r, &st, sizeof(st)));
	return st.objects;
}

/* Closes what a test has opened, after the heap has been found whole and empty. */
void finish(pando *p, pando_region *r)
{
	CHECK_INT(objects(r), 0);
	CHECK_OK(pando_heap_check(r));
	pando::unbind(r);
	CHECK_OK(pando_region_close(r));
	pando_disconnect(p);
}

void test_containers(struct harness *h)
{
	pando *p = harness_connect(h);
	pando_region *r = make(p, "cpp", 128 * MIB);

	{
		std::vector<int, alloc<int>> v(alloc<int>{r});
		std::list<text, std::scoped_allocator_adaptor<alloc<text>>> l(alloc<text>{r});
		std::set<int, std::less<int>, alloc<int>> s(alloc<int>{r});
		std::deque<double, alloc<double>> d(alloc<double>{r});
		std::unordered_map<int, int, std::hash<int>, std::equal_to<int>,
				   alloc<std::pair<const int, int>>>
			u(8, std::hash<int>(), std::equal_to<int>(),
			  alloc<std::pair<const int, int>>{r});

		for (int i = 0; i < 20000; i++) {
			v.push_back(i);
			s.insert(i * 7919 % 20011);
			d.push_front(i);
			u[i] = -i;
			if (i % 100 == 0)
				l.emplace_back(200, 'x');
		}
		CHECK(std::accumulate(v.begin(), v.end(), 0) == 199990000);
		CHECK_INT(s.size(), 20000);
		CHECK(in_region(r, v.data()) && in_region(r, &*s.begin()) &&
		      in_region(r, &l.front()) && in_region(r, l.front().data()) &&
		      in_region(r, &u.find(3)->second) && in_region(r, &d[7]));
		CHECK_INT(u[19999], -19999);
		for (int i = 0; i < 20000; i += 2)
			s.erase(i);
		l.remove(text(200, 'x', alloc<char>{r}));
		CHECK(l.empty());
		CHECK(objects(r) > 20000);
	}
	finish(p, r);
}

/* What copying, moving and swapping do with allocators of one region, and of two. */
void test_allocators(struct harness *h)
{
	pando *p = harness_connect(h);
	pando_region *a = make(p, "a", 128 * MIB);
	pando_region *b = make(p, "b", 128 * MIB);

	{
		numbers of_a({1, 2, 3}, alloc<int>{a}), of_b({4, 5}, alloc<int>{b});

		CHECK(alloc<int>(a) == alloc<char>(a) && alloc<int>(a) != alloc<int>(b));
		CHECK(alloc<int>(a, ours) == alloc<int>(a, everybodys));
		CHECK(alloc<int>(alloc<char>(a, everybodys)).lifetime() == everybodys);
		CHECK(alloc<int>(a).region() == a && alloc<int>(b).region() == b);

		numbers copy(of_a);
		CHECK(in_region(a, copy.data()));
		copy = of_b; /* elements, not the allocator */
		CHECK(in_region(a, copy.data()) && copy == of_b);
		copy = std::move(of_b);
		CHECK(in_region(b, copy.data()) && copy.size() == 2);
		std::swap(copy, of_a);
		CHECK(in_region(a, copy.data()) && in_region(b, of_a.data()) && of_a.back() == 5);

		auto *one = pando::create<numbers>(a, everybodys, 5, 7, alloc<int>(a));
		CHECK(in_region(a, one) && in_region(a, one->data()) && one->size() == 5);
		CHECK(pando_owner(a, one, nullptr) == PANDO_HOLDING_SHARED);
		CHECK(pando_owner(a, one->data(), nullptr) == PANDO_HOLDING_PRIVATE);
		pando::destroy(a, one);
		pando::destroy<numbers>(a, nullptr);
	}
	CHECK_INT(objects(b), 0);
	pando::unbind(b);
	CHECK_OK(pando_region_close(b));
	finish(p, a);
}

struct throws_at_three {
	static int made, alive;
	throws_at_three()
	{
		if (++made == 3)
			throw 3;
		alive++;
	}
	~throws_at_three()
	{
		alive--;
	}
};
int throws_at_three::made, throws_at_three::alive;

template <class F> int code_of(F f, const char *said)
{
	try {
		f();
	} catch (const pando::alloc_error &e) {
		CHECK(std::strstr(e.what(), said) != nullptr);
		return e.code();
	}
	return 0;
}

void test_exceptions(struct harness *h)
{
	pando *p = harness_connect(h);
	pando_region *r = make(p, "small", 80 * MIB);
	bool caught = false;

	{
		numbers v(alloc<int>{r});
		std::size_t before = 0;

		/* A vector that cannot grow is as it was. */
		try {
			for (int i = 0;; i++) {
				before = v.size();
				v.push_back(i);
			}
		} catch (const std::bad_alloc &e) {
			caught = true;
			CHECK(std::strlen(e.what()) > 20);
		}
		CHECK(caught && before > 100000 && v.size() == before);
		CHECK(v.back() == static_cast<int>(before) - 1);
		CHECK_INT(code_of([&] { v.reserve(v.capacity() * 4); }, ""), ENOMEM);
	}
	CHECK_INT(objects(r), 0);
	caught = false;
	try {
		(void)alloc<int>(r).allocate(SIZE_MAX / 2);
	} catch (const std::bad_array_new_length &) {
		caught = true;
	}
	CHECK(caught);
	caught = false;
	try {
		std::vector<throws_at_three, alloc<throws_at_three>> v(5,
								       alloc<throws_at_three>{r});
	} catch (int n) {
		caught = n == 3;
	}
	CHECK(caught && throws_at_three::alive == 0);
	throws_at_three::made = 2;
	caught = false;
	try {
		(void)pando::create<throws_at_three>(r, everybodys);
	} catch (int n) {
		caught = n == 3;
	}
	CHECK(caught && throws_at_three::alive == 0);
	alloc<int> a(r);
	int *kept = a.allocate(1);
	pando::unbind(r);
	CHECK_INT(code_of([&] { (void)a.allocate(1); }, "pando::bind()"), ENOENT);
	a.deallocate(kept, 1); /* not bound: stays */
	pando::bind(r);
	CHECK_INT(objects(r), 1);
	a.deallocate(kept, 1);
	finish(p, r);
}

template <std::size_t N> struct alignas(N) block {
	char bytes[N];
};

template <std::size_t N> void align(pando_region *r)
{
	std::vector<block<N>, alloc<block<N>>> v(alloc<block<N>>{r});
	std::list<block<N>, alloc<block<N>>> l(alloc<block<N>>{r});

	for (int i = 0; i < 20; i++) {
		v.emplace_back();
		l.emplace_back();
		CHECK(reinterpret_cast<std::uintptr_t>(v.data()) % N == 0);
		CHECK(reinterpret_cast<std::uintptr_t>(&l.back()) % N == 0);
	}
}

void test_aligned(struct harness *h)
{
	pando *p = harness_connect(h);
	pando_region *r = make(p, "aligned", 128 * MIB);

	align<16>(r);
	align<64>(r);
	align<128>(r);
	align<512>(r);
	align<1024>(r);
	align<4096>(r);
	align<65536>(r);
	finish(p, r);
}

void test_pmr(struct harness *h)
{
	pando *p = harness_connect(h);
	pando_region *r = make(p, "pmr", 128 * MIB);
	pando_region *other = make(p, "other", 128 * MIB);

	{
		pando::memory_resource memory(r), same(r, everybodys), else_where(other);
		std::pmr::vector<std::pmr::string> v(&memory);
		std::pmr::unordered_map<int, std::pmr::string> u(&memory);

		CHECK(memory.is_equal(same) && !memory.is_equal(else_where) &&
		      !memory.is_equal(*std::pmr::new_delete_resource()));
		CHECK(memory.region() == r);
		for (int i = 0; i < 1000; i++) {
			v.emplace_back(100, 'a');
			u.emplace(i, std::string(50, 'b'));
		}
		CHECK(in_region(r, v.data()) && in_region(r, v[999].data()) &&
		      in_region(r, u.at(500).data()));
		void *q = same.allocate(100, 4096);
		CHECK(reinterpret_cast<std::uintptr_t>(q) % 4096 == 0);
		CHECK(pando_owner(r, q, nullptr) == PANDO_HOLDING_SHARED);
		memory.deallocate(q, 100, 4096);

		std::pmr::monotonic_buffer_resource buffer(&memory);
		std::pmr::list<int> l(&buffer);
		std::pmr::synchronized_pool_resource pool(&memory);
		std::pmr::map<int, int> m(&pool);
		for (int i = 0; i < 1000; i++) {
			l.push_back(i);
			m[i] = i;
		}
		CHECK(in_region(r, &l.back()) && in_region(r, &m[5]));
		bool caught = false;
		try {
			(void)else_where.allocate(256 * MIB);
		} catch (const std::bad_alloc &) {
			caught = true;
		}
		CHECK(caught);
	}
	pando::unbind(other);
	CHECK_OK(pando_region_close(other));
	finish(p, r);
}

void fill(index_type &index, int from, int to)
{
	for (int i = from; i < to; i++) {
		char key[64];

		std::snprintf(key, sizeof(key), "a key that is too long for the string itself %d",
			      i);
		/* The strings and vectors in it lie where the map's nodes do. */
		numbers &v = index[text(key, index.get_allocator())];
		for (int k = 0; k < 10; k++)
			v.push_back(i + k);
	}
}

void verify(pando_region *r, const index_type &index, int from, int to)
{
	CHECK_INT(index.size(), to - from);
	for (const auto &[key, v] : index) {
		CHECK(in_region(r, &key) && in_region(r, key.data()) && in_region(r, v.data()));
		CHECK(v.size() == 10 && v[9] == v[0] + 9);
		CHECK(pando_owner(r, v.data(), nullptr) == PANDO_HOLDING_SHARED);
	}
}

/* A child changes its parent's map and goes; the parent finds it whole and ends it. */
void test_fork(struct harness *h)
{
	pando *p = harness_connect(h);
	pando_region *r = make(p, "fork", 128 * MIB);
	auto *index = pando::create<index_type>(r, everybodys,
						alloc<index_type::value_type>(r, everybodys));

	fill(*index, 0, 500);
	pid_t pid = fork();
	if (pid == 0) {
		verify(r, *index, 0, 500);
		fill(*index, 500, 1000);
		index->erase(index->begin(), std::next(index->begin(), 100));
		kill(getpid(), SIGKILL); /* between two changes */
	}
	CHECK_INT(harness_join(pid), 256 + SIGKILL);
	harness_await_clients(h, 2);
	verify(r, *index, 100, 1000);
	CHECK_OK(pando_heap_check(r));
	fill(*index, 1000, 1100);
	pando::destroy(r, index);
	finish(p, r);
}

/* Two processes with handles of their own. */
void test_attach(struct harness *h)
{
	int there[2], back[2];
	CHECK(pipe(there) == 0 && pipe(back) == 0);
	pid_t pid = fork();
	if (pid == 0) {
		index_type *index;
		pando_region *mine;
		pando *q;

		CHECK(read(there[0], &index, sizeof(index)) == sizeof(index));
		/* Not the first handle that this process has. */
		q = harness_connect(h);
		CHECK_OK(pando_region_open(q, "shared", 0, nullptr, &mine));
		verify(mine, *index, 0, 300); /* reading needs no handle */
		CHECK_INT(code_of([&] { fill(*index, 300, 301); }, "pando::bind()"), ENOENT);
		pando::bind(mine);
		fill(*index, 300, 600);
		auto *second = pando::create<numbers>(mine, everybodys, 100, 1,
						      alloc<int>(mine, everybodys));
		pando::unbind(mine);
		CHECK_OK(pando_region_close(mine));
		pando_disconnect(q);
		CHECK(write(back[1], &second, sizeof(second)) == sizeof(second));
		_exit(0);
	}
	pando *p = harness_connect(h);
	pando_region *r = make(p, "shared", 128 * MIB);
	auto *index = pando::create<index_type>(r, everybodys,
						alloc<index_type::value_type>(r, everybodys));
	numbers *second;

	fill(*index, 0, 300);
	CHECK(write(there[1], &index, sizeof(index)) == sizeof(index));
	CHECK(read(back[0], &second, sizeof(second)) == sizeof(second));
	CHECK_INT(harness_join(pid), 0);
	verify(r, *index, 0, 600);
	CHECK(second->size() == 100 && in_region(r, second->data()));
	second->resize(1000);
	pando::destroy(r, second);
	pando::destroy(r, index);
	for (int end : {there[0], there[1], back[0], back[1]})
		close(end);
	finish(p, r);
}

/* What was private to a process goes with it, as any object does. */
void test_private(struct harness *h)
{
	pando *p = harness_connect(h);
	pando_region *r = make(p, "private", 128 * MIB);

	(void)pando_self(r);
	pid_t pid = fork();
	if (pid == 0) {
		numbers v(1000, 1, alloc<int>{r});
		std::list<int, alloc<int>> l(500, 1, alloc<int>{r});

		_exit(objects(r) == 501 ? 0 : 1); /* no destructor runs */
	}
	CHECK_INT(harness_join(pid), 0);
	harness_await_clients(h, 2);
	for (int i = 0; i < 200 && objects(r) > 0; i++)
		harness_sleep_ms(10);
	finish(p, r);
}

} // namespace

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{"containers", test_containers, 0, 0, {}},
		{"allocators", test_allocators, 0, 0, {}},
		{"exceptions", test_exceptions, 0, 0, {}},
		{"aligned", test_aligned, 0, 0, {}},
		{"pmr", test_pmr, 0, 0, {}},
		{"fork", test_fork, 0, 0, {}},
		{"attach", test_attach, 0, 0, {}},
		{"private", test_private, 0, 0, {}},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
