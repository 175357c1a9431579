/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What every BPF program of whybox is written with: the kernel's helpers by their numbers
 * (include/uapi/linux/bpf.h), how a map is declared, and how a field is read where its place in
 * the structure is known only when the object is loaded (CO-RE).
 */
#ifndef WHYBOX_HELPERS_H
#define WHYBOX_HELPERS_H

#include <linux/bpf.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

#define NULL ((void *)0)
#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define CORE __attribute__((preserve_access_index))
#define WEAK __attribute__((weak))
/* A function of its own, which the verifier checks once and not on each way that leads to it: its
 * arguments and its result are numbers (global functions, Linux 5.6). */
#define CHECKED_ONCE __attribute__((noinline))
#define LICENSE_SECTION char LICENSE[] SEC("license") = "Dual BSD/GPL"

/* A map is a structure whose members say its properties by their types (libbpf's BTF maps). */
#define MAP_NUMBER(name, value) int(*name)[value]
#define MAP_TYPE(name, kind) kind *name

#define ARRAY_OF(kind, count)                                                                      \
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);                                                      \
	MAP_NUMBER(max_entries, count);                                                            \
	MAP_TYPE(key, u32);                                                                        \
	MAP_TYPE(value, kind)
#define PERCPU_ARRAY_OF(kind, count)                                                               \
	MAP_NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                               \
	MAP_NUMBER(max_entries, count);                                                            \
	MAP_TYPE(key, u32);                                                                        \
	MAP_TYPE(value, kind)
#define HASH_OF(key_kind, kind, count)                                                             \
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);                                                       \
	MAP_NUMBER(max_entries, count);                                                            \
	MAP_TYPE(key, key_kind);                                                                   \
	MAP_TYPE(value, kind)
#define LRU_HASH_OF(key_kind, kind, count)                                                         \
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);                                                   \
	MAP_NUMBER(max_entries, count);                                                            \
	MAP_TYPE(key, key_kind);                                                                   \
	MAP_TYPE(value, kind)
#define RING_OF(bytes)                                                                             \
	MAP_NUMBER(type, BPF_MAP_TYPE_RINGBUF);                                                    \
	MAP_NUMBER(max_entries, bytes)
#define STACKS_OF(depth, count)                                                                    \
	MAP_NUMBER(type, BPF_MAP_TYPE_STACK_TRACE);                                                \
	MAP_NUMBER(max_entries, count);                                                            \
	MAP_TYPE(key, u32);                                                                        \
	u64(*value)[depth]

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value,
				   u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static u32 (*bpf_get_smp_processor_id)(void) = (void *)8;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static u64 (*bpf_get_current_uid_gid)(void) = (void *)15;
static long (*bpf_get_current_comm)(void *buffer, u32 size) = (void *)16;
static long (*bpf_get_stackid)(void *context, void *map, u64 flags) = (void *)27;
static u64 (*bpf_get_current_task)(void) = (void *)35;
static long (*bpf_probe_read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*bpf_probe_read_user_str)(void *to, u32 size, const void *from) = (void *)114;
static long (*bpf_probe_read_kernel_str)(void *to, u32 size, const void *from) = (void *)115;
static long (*bpf_seq_write)(void *seq, const void *data, u32 size) = (void *)127;
static void *(*bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;
static void (*bpf_ringbuf_discard)(void *data, u64 flags) = (void *)133;
static long (*bpf_get_stack)(void *context, void *buffer, u32 size, u64 flags) = (void *)67;
static long (*bpf_get_task_stack)(void *task, void *buffer, u32 size, u64 flags) = (void *)141;

/* One field, one hop; hops nest: READ(READ(task, cgroups), dfl_cgrp). NULL and stale pointers
 * read as zeros. */
#define READ(pointer, field)                                                                       \
	({                                                                                         \
		__typeof__(pointer) from__ = (pointer);                                            \
		__typeof__(from__->field) value__ = {};                                            \
		bpf_probe_read_kernel(&value__, sizeof(value__), &from__->field);                  \
		value__;                                                                           \
	})
#define READ_STR(to, pointer, field)                                                               \
	bpf_probe_read_kernel_str((to), sizeof(to),                                                \
				  __builtin_preserve_access_index(&(pointer)->field))

/* What this kernel has (libbpf fills it in when it loads the object): relocations of
 * include/uapi/linux/bpf.h, enum bpf_core_relo_kind. */
#define FIELD_EXISTS(expression)                                                                   \
	__builtin_preserve_field_info(expression, 2 /* BPF_CORE_FIELD_EXISTS */)
#define TYPE_EXISTS(kind) __builtin_preserve_type_info(*(__typeof__(kind) *)0, 0)
#define ENUM_EXISTS(kind, name)                                                                    \
	__builtin_preserve_enum_value(*(__typeof__(kind) *)name, 0 /* exists */)
#define ENUM_VALUE(kind, name)                                                                     \
	__builtin_preserve_enum_value(*(__typeof__(kind) *)name, 1 /* value */)

/* Logarithm to the base 2, rounded down, of a number below 2^64; of 0 it is 0. */
INLINE u32 log2(u64 value)
{
	u32 result = 0, shift;

	shift = (value > 0xffffffffULL) << 5, value >>= shift, result |= shift;
	shift = (value > 0xffff) << 4, value >>= shift, result |= shift;
	shift = (value > 0xff) << 3, value >>= shift, result |= shift;
	shift = (value > 0xf) << 2, value >>= shift, result |= shift;
	shift = (value > 0x3) << 1, value >>= shift, result |= shift;
	return result | (u32)(value >> 1);
}

#endif
