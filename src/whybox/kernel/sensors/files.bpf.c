/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A container's slow file operations, and those in which the kernel wrote what the program did not
 * give it: the first change to a file of a lower overlay layer, which copies it.
 *
 * What an operation had the task write is the kernel's own account (task_io_accounting), taken when
 * the call begins and again when it ends. The arguments lie in the registers until then, so that
 * only calls that are told cost more than two looks at the clock.
 */
#define EVENTS_BYTES (1 << 21)
#include "events.h"
#include "scope.h"

#define MOST_CALLS 512
#define PATH_BYTES 256
#define BASE_BYTES 768
#define NAME_BYTES 128
#define MOST_NAMES 24

#define AT_FDCWD -100
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFDIR 0040000
#define S_IFBLK 0060000

/* What is known of a system call; user space fills it in by the names (sensors/files.py). */
#define NO_ARGUMENT 7
struct call {
	u8 kind; /* 0: it is not looked at */
	u8 directory, path, file, flags; /* which argument that is */
	u8 copies; /* it may copy a file of a lower layer */
	u8 opens;
	u8 points; /* the flags are where the argument points to */
};

struct {
	ARRAY_OF(struct call, MOST_CALLS);
} calls SEC(".maps");

/* From which length on an operation is told. */
struct {
	ARRAY_OF(u64, 1);
} slower SEC(".maps");

struct doing {
	u64 at_ns, read_bytes, write_bytes;
	u64 copying_at_ns, copying_ns;
	u32 slot, number;
};

struct {
	LRU_HASH_OF(u32, struct doing, 16384);
} tasks SEC(".maps");

struct told {
	u64 at_ns, took_ns, read_bytes, write_bytes, copying_ns, inode, flags;
	s64 result;
	u32 slot, pid, tid, number;
	u32 path_bytes, base_bytes; /* with the zeros at the ends */
	u32 complete; /* `base` is the whole path from the root down */
	u32 absolute; /* `path` is of no use: `base` is the file itself */
	char comm[16];
	char path[PATH_BYTES];
	char base[BASE_BYTES]; /* names, the last first */
};

struct pt_regs___x86 {
	u64 di, si, dx, r10, orig_ax, cs;
} CORE;

struct pt_regs___arm64 {
	u64 regs[31];
	u64 pstate, orig_x0;
	s32 syscallno;
} CORE;

struct qstr {
	const char *name;
} CORE;

struct dentry {
	struct qstr d_name;
	struct dentry *d_parent;
} CORE;

struct vfsmount {
	struct dentry *mnt_root;
} CORE;

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
} CORE;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} CORE;

struct inode {
	u16 i_mode;
	u64 i_ino;
} CORE;

struct file {
	struct path f_path;
	struct inode *f_inode;
} CORE;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} CORE;

struct files_struct {
	struct fdtable *fdt;
} CORE;

struct fs_struct {
	struct path root, pwd;
} CORE;

struct task_struct___files {
	struct files_struct *files;
	struct fs_struct *fs;
} CORE;

#define ON_X86 FIELD_EXISTS(((struct pt_regs___x86 *)0)->orig_ax)

/* A call of a 64-bit program, or none: __USER32_CS, PSR_MODE32_BIT. */
INLINE struct call *call_of(u64 registers, u32 *number)
{
	struct pt_regs___x86 *x86 = (struct pt_regs___x86 *)registers;
	struct pt_regs___arm64 *arm64 = (struct pt_regs___arm64 *)registers;
	struct call *call;
	u64 called;

	if (ON_X86)
		called = x86->orig_ax;
	else
		called = (u32)arm64->syscallno;
	if (called >= MOST_CALLS)
		return NULL;
	*number = called;
	call = bpf_map_lookup_elem(&calls, number);
	if (!call || !call->kind)
		return NULL;
	if (ON_X86 ? (x86->cs & 0xffff) == 0x23 : arm64->pstate & 0x10)
		return NULL;
	return call;
}

/* The result of a call is put where the first argument was; on arm64 that is kept apart. */
INLINE u64 argument_of(u64 registers, u8 nth)
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
		return 0;
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
	return 0;
}

SEC("tp_btf/sys_enter")
int on_enter(u64 *context)
{
	struct task_struct *task;
	struct doing *known, fresh = {};
	struct call *call;
	u32 number = 0, tid, slot;

	call = call_of(context[0], &number);
	if (!call)
		return 0;
	task = current_task();
	slot = slot_of(task);
	if (!slot)
		return 0;
	tid = bpf_get_current_pid_tgid();
	known = bpf_map_lookup_elem(&tasks, &tid);
	if (!known) {
		if (bpf_map_update_elem(&tasks, &tid, &fresh, 0))
			return 0;
		known = bpf_map_lookup_elem(&tasks, &tid);
		if (!known)
			return 0;
	}
	known->slot = slot;
	known->number = number;
	known->read_bytes = READ(task, ioac.read_bytes);
	known->write_bytes = READ(task, ioac.write_bytes);
	known->copying_ns = known->copying_at_ns = 0;
	known->at_ns = bpf_ktime_get_ns();
	return 0;
}

INLINE struct file *file_of(struct task_struct___files *task, u64 descriptor)
{
	struct fdtable *table = READ(READ(task, files), fdt);
	struct file *file = NULL;

	if (descriptor >= READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), READ(table, fd) + descriptor);
	return file;
}

/* Reading from a pipe or a socket is waiting for somebody, not for a file. */
INLINE bool is_file(struct file *file)
{
	u16 type = READ(READ(file, f_inode), i_mode) & S_IFMT;

	return type == S_IFREG || type == S_IFDIR || type == S_IFBLK;
}

INLINE struct mount *mount_of(struct vfsmount *mnt)
{
	return (void *)((char *)mnt -
			(u64)__builtin_preserve_access_index(&((struct mount *)0)->mnt));
}

/*
 * The names from a place up to the root of the task, through every mount on the way (fs/d_path.c,
 * prepend_path()). Somebody may rename them meanwhile: then what is told is neither way.
 */
static __attribute__((noinline)) int climb(struct told *event, struct path *from)
{
	struct task_struct___files *task = (struct task_struct___files *)bpf_get_current_task();
	struct path root, at;

	if (!event || !from)
		return 0;
	at = *from;
	root = READ(READ(task, fs), root);
	for (int i = 0; i < MOST_NAMES; i++) {
		struct dentry *parent;
		u32 bytes;
		s64 got;

		if (at.dentry == root.dentry && at.mnt == root.mnt) {
			event->complete = 1;
			break;
		}
		if (at.dentry == READ(at.mnt, mnt_root)) {
			struct mount *mount = mount_of(at.mnt), *above = READ(mount, mnt_parent);

			event->complete = above == mount; /* of a tree that is mounted nowhere */
			if (above == mount)
				break;
			at.dentry = READ(mount, mnt_mountpoint);
			at.mnt = (void *)__builtin_preserve_access_index(&above->mnt);
			continue;
		}
		parent = READ(at.dentry, d_parent);
		/* Where it goes is kept in memory: the verifier then forgets which way it came, and
		 * need not try them all. */
		bytes = *(volatile u32 *)&event->base_bytes;
		if (parent == at.dentry || bytes > BASE_BYTES - NAME_BYTES)
			break;
		got = bpf_probe_read_kernel_str(event->base + bytes, NAME_BYTES,
						READ(at.dentry, d_name.name));
		if (got <= 0 || got > NAME_BYTES)
			break;
		*(volatile u32 *)&event->base_bytes = bytes + got;
		at.dentry = parent;
	}
	return 0;
}

INLINE void locate(struct told *event, struct call *call, u64 registers, struct file *file)
{
	struct task_struct___files *task = (struct task_struct___files *)bpf_get_current_task();
	struct path from = {};
	s64 got;

	event->base_bytes = event->path_bytes = event->complete = 0;
	event->absolute = 0;
	event->inode = 0;
	event->path[0] = 0;
	if (file) {
		event->absolute = 1;
		event->inode = READ(READ(file, f_inode), i_ino);
		from = READ(file, f_path);
	} else if (call->path != NO_ARGUMENT) {
		s32 directory = AT_FDCWD;

		got = bpf_probe_read_user_str(event->path, PATH_BYTES,
					      (void *)argument_of(registers, call->path));
		event->path_bytes = got > 0 ? got : 0;
		if (call->directory != NO_ARGUMENT)
			directory = argument_of(registers, call->directory);
		if (event->path[0] == '/')
			return;
		if (directory == AT_FDCWD)
			from = READ(READ(task, fs), pwd);
		else
			from = READ(file_of(task, (u32)directory), f_path);
	}
	if (from.dentry)
		climb(event, &from);
}

INLINE u64 flags_of(struct call *call, u64 registers)
{
	u64 flags, pointed = 0;

	if (call->flags == NO_ARGUMENT)
		return 0;
	flags = argument_of(registers, call->flags);
	if (!call->points)
		return flags;
	bpf_probe_read_user(&pointed, sizeof(pointed), (void *)flags);
	return pointed;
}

SEC("tp_btf/sys_exit")
int on_exit(u64 *context)
{
	u32 number = 0, tid, zero = 0;
	struct call *call = call_of(context[0], &number);
	struct task_struct *task;
	struct file *file = NULL;
	struct doing *known;
	struct told *event;
	u64 now, took, wrote, *least;

	if (!call)
		return 0;
	tid = bpf_get_current_pid_tgid();
	known = bpf_map_lookup_elem(&tasks, &tid);
	if (!known || !known->at_ns || known->number != number)
		return 0;
	now = bpf_ktime_get_ns();
	took = now - known->at_ns;
	known->at_ns = 0;
	task = current_task();
	wrote = READ(task, ioac.write_bytes) - known->write_bytes;
	least = bpf_map_lookup_elem(&slower, &zero);
	if (!least || (took < *least && !(call->copies && (wrote || known->copying_ns))))
		return 0;
	if (call->file != NO_ARGUMENT) {
		file = file_of((void *)task, (u32)argument_of(context[0], call->file));
		if (!file || !is_file(file))
			return 0;
	} else if (call->opens && (s64)context[1] >= 0) {
		file = file_of((void *)task, context[1]);
	}
	event = event_room(sizeof(*event));
	if (!event)
		return 0;
	event->at_ns = now;
	event->took_ns = took;
	event->read_bytes = READ(task, ioac.read_bytes) - known->read_bytes;
	event->write_bytes = wrote;
	event->copying_ns = known->copying_ns;
	event->result = context[1];
	event->slot = known->slot;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->tid = tid;
	event->number = number;
	event->flags = flags_of(call, context[0]);
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	locate(event, call, context[0], file);
	event_done(event);
	return 0;
}

/* Where functions of the kernel can be probed, the copying itself is seen. It is entered for files
 * that need none as well, and leaves at once. */
SEC("kprobe/ovl_copy_up_flags")
int on_copy(void *registers)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct doing *known = bpf_map_lookup_elem(&tasks, &tid);

	if (known && known->at_ns)
		known->copying_at_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("kretprobe/ovl_copy_up_flags")
int after_copy(void *registers)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct doing *known = bpf_map_lookup_elem(&tasks, &tid);

	if (known && known->at_ns && known->copying_at_ns) {
		u64 took = bpf_ktime_get_ns() - known->copying_at_ns;

		known->copying_at_ns = 0;
		if (took > 200000) /* less is no copy: that ends with a sync */
			known->copying_ns += took;
	}
	return 0;
}

LICENSE_SECTION;
