/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the sensors of system calls and of capabilities have in common: whether the current task is
 * watched, found cheaply; the call it is in; and the kernel's check for a capability.
 */
#ifndef WHYBOX_CHECKS_H
#define WHYBOX_CHECKS_H

#include "scope.h"

#define EVERY_CALL 512 /* of a kind: native ones, then those of 32-bit programs */
#define OTHER_CALL (EVERY_CALL - 1) /* all numbers beyond */
#define NO_CALL (2 * EVERY_CALL)

/* The registers with which a task has entered the kernel, on x86 and on arm64. */
struct pt_regs___x86 {
	u64 di, si, dx, cx, ax, orig_ax, cs, ss;
} CORE;

struct pt_regs___arm64 {
	u64 regs[31];
	u64 pstate;
	s32 syscallno;
} CORE;

struct pt_regs {
	u64 unused;
} CORE;

struct kernel_cap {
	u64 bits;
};

/* kernel_cap_t was two words of 32 bits until commit f122a08b197d ("capability: just use a 'u64'
 * instead of a 'u32[2]' array") (v6.3): on a little-endian machine the same eight bytes. */
struct user_namespace;

struct cred {
	struct {
		u64 unused;
	} cap_effective;
	struct user_namespace *user_ns;
} CORE;

struct vm_struct {
	u64 size;
	unsigned int nr_pages;
} CORE;

struct seccomp {
	int mode;
} CORE;

struct signal_struct {
	unsigned int flags;
} CORE;

struct task_struct___checked {
	const struct cred *real_cred;
	void *stack;
	struct vm_struct *stack_vm_area;
	struct seccomp seccomp;
	struct signal_struct *signal;
	int exit_code;
} CORE;

INLINE struct task_struct___checked *checked_task(void)
{
	return (struct task_struct___checked *)bpf_get_current_task();
}

#define ON_X86 FIELD_EXISTS(((struct pt_regs___x86 *)0)->orig_ax)

/*
 * Who is watched is looked up once for a task, not for each of its calls: the last task of each
 * CPU is remembered in one word, its thread's id, its slot, and the epoch in which that was so. An
 * epoch ends when any task is moved to another group, and when a container is added.
 */
struct last {
	u64 seen;
	u64 runs; /* how often it was asked */
};

struct {
	PERCPU_ARRAY_OF(struct last, 1);
} last_seen SEC(".maps");

struct {
	ARRAY_OF(u64, 1);
} epoch SEC(".maps");

SEC("tp_btf/cgroup_attach_task")
int on_move(u64 *context)
{
	u32 zero = 0;
	u64 *now = bpf_map_lookup_elem(&epoch, &zero);

	if (now)
		__sync_fetch_and_add(now, 1);
	return 0;
}

INLINE u32 slot_of_current(u32 tid)
{
	u32 zero = 0, slot;
	struct last *last = bpf_map_lookup_elem(&last_seen, &zero);
	u64 *now = bpf_map_lookup_elem(&epoch, &zero);
	u64 seen, known;

	if (!last || !now)
		return 0;
	last->runs++;
	seen = *(volatile u64 *)now << 40 | tid;
	known = *(volatile u64 *)&last->seen;
	if ((known & ~(0xffULL << 32)) == seen)
		return known >> 32 & 0xff;
	slot = slot_of(current_task()) & 0xff;
	*(volatile u64 *)&last->seen = seen | (u64)slot << 32;
	return slot;
}

/* Where a call is counted. */
INLINE u32 index_of(s64 number, bool compat)
{
	u32 index = (u64)number < OTHER_CALL ? number : OTHER_CALL;

	return compat ? index + EVERY_CALL : index;
}

/*
 * The call that the current task is in, where no program has seen it enter: from the registers that
 * lie at the top of its kernel stack (arch/x86/include/asm/processor.h, task_pt_regs()). With FRED
 * they lie two words lower (TOP_OF_KERNEL_STACK_PADDING), so what is read is checked to be the
 * registers of user space.
 */
INLINE u32 x86_call_at(u64 top)
{
	struct pt_regs___x86 *regs;
	u64 cs, ss, number;

	regs = (void *)(top - __builtin_preserve_type_info(*(struct pt_regs *)0, 1));
	cs = 0, ss = 0, number = 0;
	bpf_probe_read_kernel(&cs, 2, __builtin_preserve_access_index(&regs->cs));
	bpf_probe_read_kernel(&ss, 2, __builtin_preserve_access_index(&regs->ss));
	bpf_probe_read_kernel(&number, 8, __builtin_preserve_access_index(&regs->orig_ax));
	/* __USER_CS, __USER32_CS and __USER_DS (arch/x86/include/asm/segment.h) */
	if ((cs != 0x33 && cs != 0x23) || ss != 0x2b || (s64)number < 0)
		return NO_CALL;
	return index_of(number, cs == 0x23);
}

INLINE u32 arm64_call_at(u64 top)
{
	struct pt_regs___arm64 *regs;
	u64 pstate;
	s32 number;

	regs = (void *)(top - __builtin_preserve_type_info(*(struct pt_regs *)0, 1));
	pstate = READ(regs, pstate);
	number = READ(regs, syscallno);
	/* PSR_MODE_EL0t, and PSR_MODE32_BIT (arch/arm64/include/uapi/asm/ptrace.h) */
	if ((pstate & 0xf) || number < 0)
		return NO_CALL;
	return index_of(number, pstate & 0x10);
}

INLINE u64 stack_top(struct task_struct___checked *task)
{
	struct vm_struct *area = NULL;
	u64 pages, bytes = 16384; /* THREAD_SIZE of most kernels */

	if (FIELD_EXISTS(task->stack_vm_area))
		area = READ(task, stack_vm_area);
	pages = area ? READ(area, nr_pages) : 0;
	if (pages) /* its size counts a page that guards it */
		bytes = READ(area, size) / (pages + 1) * pages;
	return (u64)READ(task, stack) + bytes;
}

INLINE u32 call_at(u64 top)
{
	u32 call;

	if (!ON_X86)
		return arm64_call_at(top);
	call = x86_call_at(top);
	return call != NO_CALL ? call : x86_call_at(top - 16);
}

INLINE u32 current_call(struct task_struct___checked *task)
{
	return call_at(stack_top(task));
}

INLINE u64 effective(const struct cred *cred)
{
	u64 bits = 0;

	bpf_probe_read_kernel(&bits, sizeof(bits),
			      __builtin_preserve_access_index(&cred->cap_effective));
	return bits;
}

/*
 * Of some pairs of capabilities either will do. The kernel asks for the first, and if that is
 * refused for the other, which all is well if it is granted (fs/namei.c, generic_permission();
 * include/linux/capability.h, bpf_capable() and its like). The first ones, by the other.
 */
#define CAP_DAC_OVERRIDE 1
#define CAP_DAC_READ_SEARCH 2
#define CAP_SYS_ADMIN 21
#define CAP_SYSLOG 34
#define CAP_PERFMON 38
#define CAP_BPF 39
#define CAP_CHECKPOINT_RESTORE 40
#define BIT(n) (1ULL << (n))

INLINE u64 made_up_for_by(u32 cap)
{
	if (cap == CAP_DAC_OVERRIDE)
		return BIT(CAP_DAC_READ_SEARCH);
	if (cap == CAP_SYS_ADMIN)
		return BIT(CAP_SYSLOG) | BIT(CAP_PERFMON) | BIT(CAP_BPF) |
		       BIT(CAP_CHECKPOINT_RESTORE);
	return 0;
}

/* The argument of a function of the kernel, in a kprobe. Not read in place: where the compiler joins
 * the two loads into one, the verifier of 5.10 refuses the address. */
#define ARGUMENT(context, x86, nth)                                                                \
	(ON_X86 ? READ((struct pt_regs___x86 *)(context), x86) :                                   \
		  READ((struct pt_regs___arm64 *)(context), regs[nth]))
#define RESULT(context) ARGUMENT(context, ax, 0)

#define DEEP 14 /* of which five are the program itself and the way to the check */
#define FAST_COMPARE (1ULL << 9) /* BPF_F_FAST_STACK_CMP */

struct {
	STACKS_OF(DEEP, 8192);
} stacks SEC(".maps");

/* The number of a stack, -1: it could not be kept. Where another one has its place in the map, it is
 * put where it belongs without its first frame, which is the program itself. */
INLINE s32 kept_stack(void *context)
{
	s32 number = bpf_get_stackid(context, &stacks, FAST_COMPARE);

	if (number < 0)
		number = bpf_get_stackid(context, &stacks, FAST_COMPARE | 1);
	return number < 0 ? -1 : number;
}

#endif
