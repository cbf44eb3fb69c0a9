/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Errors.
 *
 * One policy for the whole library. A function that can fail returns 0 (or a count) on success and
 * a negative errno on failure; a function that returns a pointer returns NULL. The number tells a
 * program what to do; the sentence of pando_strerror_last() tells a person: what failed, with which
 * value, and what to do about it. The library never prints, exits or aborts, except through the
 * settable handler for a caller's broken contract that would corrupt memory.
 *
 * The end of a peer, a full queue and "would block" are ordinary results, listed with each
 * function.
 */
#ifndef PANDO_ERROR_H
#define PANDO_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PANDO_API __attribute__((visibility("default")))
#define PANDO_NODISCARD __attribute__((warn_unused_result))
#define PANDO_NONNULL(...) __attribute__((nonnull(__VA_ARGS__)))
#define PANDO_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define PANDO_API
#define PANDO_NODISCARD
#define PANDO_NONNULL(...)
#define PANDO_PRINTF(fmt, args)
#endif

/*
 * The last failure of the calling thread, as one sentence without a trailing newline; "" if no
 * call of this thread has failed yet. The string belongs to the thread and stays valid until its
 * next call into the library. Any thread; not async-signal-safe.
 */
PANDO_API const char *pando_strerror_last(void);

/* The library's version, "MAJOR.MINOR.PATCH", static storage. Any thread, any signal context. */
PANDO_API const char *pando_version(void);

#ifdef __cplusplus
}
#endif
#endif
