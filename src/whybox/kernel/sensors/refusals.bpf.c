/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Memory and room that a container was refused and of which no counter tells: system calls that
 * found no huge page, no room in a file system, or a limit of System V IPC, calls that say the same
 * (ENOSPC, EDQUOT) for other reasons, and SIGBUS, with what was mapped at the address. Of a call's
 * arguments nothing in the program's memory is read.
 */
#define EVENTS_BYTES (1 << 16)
#include "events.h"
#include "scope.h"

#define MOST_CALLS 512

#define ENOMEM 12
#define EINVAL 22
#define ENOSPC 28
#define EDQUOT 122
#define SIGBUS 7
#define MAP_HUGETLB 0x40000
#define MAP_ANONYMOUS 0x20
/* include/uapi/linux/magic.h */
#define TMPFS_MAGIC 0x01021994
#define HUGETLBFS_MAGIC 0x958458f6

/* A signal without a siginfo of its own (include/linux/sched/signal.h). */
#define SEND_SIG_PRIV 1

/* NAME: the file is named by a path. OTHER: it is about no file. */
enum kind { NOT_LOOKED_AT, MAPS, IPC, FILE, BUS, NAME, OTHER };

/* include/uapi/linux/stat.h */
#define S_IFMT 0170000
#define S_IFREG 0100000

/* What is known of a system call; user space fills it in by the names (sensors/refusals.py). */
struct call {
	u8 kind;
	u8 file; /* which argument is the descriptor */
	u8 unused[2];
};

struct {
	ARRAY_OF(struct call, MOST_CALLS);
} calls SEC(".maps");

struct refusal {
	u64 at_ns;
	u32 slot, kind;
	u32 number; /* of the call */
	s32 error; /* errno; of a signal its code */
	u32 pid, tid;
	u64 arguments[4]; /* of a signal: address, flags of the mapping, place in the file, its size */
	u64 magic, inode; /* of the file; 0: it is none, or not known */
	u32 device;
	u32 mapped; /* whether it is known what was mapped there */
	char comm[16];
};

struct pt_regs___x86 {
	u64 di, si, dx, r10, r8, orig_ax, cs;
} CORE;

struct pt_regs___arm64 {
	u64 regs[31];
	u64 pstate, orig_x0;
	s32 syscallno;
} CORE;

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
} CORE;

struct inode {
	u16 i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	s64 i_size;
} CORE;

struct file {
	struct inode *f_inode;
} CORE;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} CORE;

struct files_struct {
	struct fdtable *fdt;
} CORE;

struct task_struct___files {
	struct files_struct *files;
} CORE;

struct vm_area_struct {
	unsigned long vm_start, vm_flags, vm_pgoff;
	struct file *vm_file;
} CORE;

union __sifields {
	struct {
		void *_addr;
	} _sigfault;
} CORE;

struct kernel_siginfo {
	int si_code;
	union __sifields _sifields;
} CORE;

static long (*bpf_find_vma)(void *task, u64 address, void *callback, void *context,
			    u64 flags) = (void *)180;

#define ON_X86 FIELD_EXISTS(((struct pt_regs___x86 *)0)->orig_ax)

INLINE u32 number_of(u64 registers)
{
	if (ON_X86)
		return READ((struct pt_regs___x86 *)registers, orig_ax);
	return READ((struct pt_regs___arm64 *)registers, syscallno);
}

/* A 32-bit program has other numbers: __USER32_CS, PSR_MODE32_BIT. */
INLINE bool is_compat(u64 registers)
{
	if (ON_X86)
		return (READ((struct pt_regs___x86 *)registers, cs) & 0xffff) == 0x23;
	return READ((struct pt_regs___arm64 *)registers, pstate) & 0x10;
}

/* The result of a call is put where the first argument was; on arm64 that is kept apart. Not inline,
 * for then the compiler works out both places before it asks which machine it is. */
static __attribute__((noinline)) u64 argument_of(u64 registers, u32 nth)
{
	struct pt_regs___x86 *x86 = (struct pt_regs___x86 *)registers;
	struct pt_regs___arm64 *arm64 = (struct pt_regs___arm64 *)registers;

	if (ON_X86) {
		switch (nth) {
		case 0:
			return READ(x86, di);
		case 1:
			return READ(x86, si);
		case 2:
			return READ(x86, dx);
		case 3:
			return READ(x86, r10);
		}
		return READ(x86, r8);
	}
	switch (nth) {
	case 0:
		return READ(arm64, orig_x0);
	case 1:
		return READ(arm64, regs[1]);
	case 2:
		return READ(arm64, regs[2]);
	case 3:
		return READ(arm64, regs[3]);
	}
	return READ(arm64, regs[4]);
}

INLINE struct inode *inode_of(u32 descriptor)
{
	struct task_struct___files *task = (struct task_struct___files *)bpf_get_current_task();
	struct fdtable *table = READ(READ(task, files), fdt);
	struct file *file = NULL;

	if (descriptor >= READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), READ(table, fd) + descriptor);
	return READ(file, f_inode);
}

INLINE u64 magic_of(struct inode *inode)
{
	return READ(READ(inode, i_sb), s_magic);
}

/* The file that a refused call was about; `wanted` is false where it is no case of ours. */
INLINE struct inode *file_of(struct call *call, u64 registers, s64 error, bool *wanted)
{
	struct inode *inode = NULL;

	if (call->kind == IPC) {
		*wanted = error != EDQUOT;
		return NULL;
	}
	if (call->kind == NAME || call->kind == OTHER) {
		*wanted = error == ENOSPC || error == EDQUOT;
		return NULL;
	}
	if (call->kind == MAPS) {
		u64 flags = argument_of(registers, 3);

		if (flags & MAP_ANONYMOUS) {
			*wanted = error == ENOMEM && flags & MAP_HUGETLB;
			return NULL;
		}
		inode = inode_of(argument_of(registers, 4));
		*wanted = error == ENOMEM && magic_of(inode) == HUGETLBFS_MAGIC;
		return inode;
	}
	inode = inode_of(argument_of(registers, call->file));
	/* /dev/full says ENOSPC too. */
	*wanted = (READ(inode, i_mode) & S_IFMT) == S_IFREG &&
		  (error == ENOSPC || error == EDQUOT ||
		   (error != EINVAL && magic_of(inode) == HUGETLBFS_MAGIC));
	return inode;
}

INLINE void describe(struct refusal *event, struct inode *inode)
{
	struct super_block *file_system = READ(inode, i_sb);

	event->magic = READ(file_system, s_magic);
	event->device = READ(file_system, s_dev);
	event->inode = READ(inode, i_ino);
}

INLINE struct refusal *begun(u32 slot, u32 kind)
{
	struct refusal *event = event_room(sizeof(*event));

	if (!event)
		return NULL;
	event->at_ns = bpf_ktime_get_ns();
	event->slot = slot;
	event->kind = kind;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->tid = bpf_get_current_pid_tgid();
	event->number = event->mapped = 0;
	for (int i = 0; i < 4; i++)
		event->arguments[i] = 0;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	return event;
}

SEC("tp_btf/sys_exit")
int on_exit(u64 *context)
{
	u64 registers = context[0];
	s64 error = -(s64)context[1];
	struct refusal *event;
	struct inode *inode;
	struct call *call;
	bool wanted = false;
	u32 number, slot;

	if (error != ENOMEM && error != ENOSPC && error != EINVAL && error != EDQUOT)
		return 0;
	number = number_of(registers);
	call = bpf_map_lookup_elem(&calls, &number);
	if (!call || call->kind == NOT_LOOKED_AT || is_compat(registers))
		return 0;
	slot = slot_of(current_task());
	if (!slot)
		return 0;
	inode = file_of(call, registers, error, &wanted);
	if (!wanted)
		return 0;
	event = begun(slot, call->kind);
	if (!event)
		return 0;
	event->number = number;
	event->error = error;
	for (int i = 0; i < 4; i++)
		event->arguments[i] = argument_of(registers, i);
	describe(event, inode);
	event_done(event);
	return 0;
}

struct place {
	u64 address, flags, page, size;
	struct inode *inode;
	u32 found;
};

static __attribute__((noinline)) long look(struct task_struct *task, struct vm_area_struct *vma,
					   void *context)
{
	struct place *place = context;
	u64 start = READ(vma, vm_start);

	place->found = 1;
	place->flags = READ(vma, vm_flags);
	place->inode = READ(READ(vma, vm_file), f_inode);
	/* The unit of vm_pgoff is a page, 4 KiB; of huge pages it is that too. */
	place->page = READ(vma, vm_pgoff) + ((place->address - start) >> 12);
	place->size = READ(place->inode, i_size);
	return 0;
}

INLINE int told_of_bus(u64 *context, bool where)
{
	s32 signal = context[0];
	struct kernel_siginfo *info = (struct kernel_siginfo *)context[1];
	struct task_struct *to = (struct task_struct *)context[2];
	struct place place = {};
	struct refusal *event;
	u32 slot;

	if (signal != SIGBUS || (u64)info <= SEND_SIG_PRIV)
		return 0;
	slot = slot_of(to);
	if (!slot)
		return 0;
	place.address = (u64)READ(info, _sifields._sigfault._addr);
	if (where && READ(info, si_code) > 0)
		bpf_find_vma(to, place.address, look, &place, 0);
	event = begun(slot, BUS);
	if (!event)
		return 0;
	event->error = READ(info, si_code);
	event->pid = READ(to, tgid);
	event->tid = READ(to, pid);
	READ_STR(event->comm, to, comm);
	event->mapped = place.found;
	event->arguments[0] = place.address;
	event->arguments[1] = place.flags;
	event->arguments[2] = place.page << 12;
	event->arguments[3] = place.size;
	describe(event, place.inode);
	event_done(event);
	return 0;
}

SEC("tp_btf/signal_generate")
int on_bus(u64 *context)
{
	return told_of_bus(context, true);
}

/* For kernels that cannot be asked what is mapped where (bpf_find_vma). */
SEC("tp_btf/signal_generate")
int on_bus_unplaced(u64 *context)
{
	return told_of_bus(context, false);
}

LICENSE_SECTION;
