/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which system calls a container makes, on which of its mounts it opens files, which devices among
 * them, and which sockets in its file system it connects to: only that it does, and how often.
 */
#include "checks.h"

#define S_IFMT 0170000
#define S_IFBLK 0060000
#define S_IFCHR 0020000
#define AF_UNIX 1
#define EINPROGRESS 115
#define NAME_BYTES 108

enum about { NOTHING, OPENS, CONNECTS };

/* What is known of a call; user space fills it in by the names (sensors/exercised.py). */
struct {
	ARRAY_OF(u32, 512);
} calls SEC(".maps");

/* The calls that each container has made: a byte for each counter of checks.h. Setting a bit among
 * others takes an atomic operation that Linux 5.10 does not have (commit 981f94c3e921). */
struct made {
	u8 calls[2 * EVERY_CALL];
};

struct {
	HASH_OF(u32, struct made, 4096);
} made SEC(".maps");

struct {
	PERCPU_ARRAY_OF(struct made, 1);
} none SEC(".maps");

struct opened {
	u32 slot;
	s32 mount; /* as mountinfo numbers it */
	u32 device; /* of a device node; 0: it is none */
	u32 kind; /* of the file: S_IFMT */
};

struct {
	HASH_OF(struct opened, u64, 8192);
} opened SEC(".maps");

struct connected {
	u32 slot;
	char name[NAME_BYTES];
};

struct {
	HASH_OF(struct connected, u64, 1024);
} connected SEC(".maps");

struct inode {
	unsigned short i_mode;
	u32 i_rdev;
} CORE;

struct vfsmount {
	int mnt_flags;
} CORE;

struct mount {
	struct vfsmount mnt;
	int mnt_id;
} CORE;

struct path {
	struct vfsmount *mnt;
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

struct task_struct___files {
	struct files_struct *files;
} CORE;

INLINE s64 number_of(u64 registers)
{
	if (ON_X86)
		return ((struct pt_regs___x86 *)registers)->orig_ax;
	return ((struct pt_regs___arm64 *)registers)->syscallno;
}

INLINE bool is_compat(u64 registers)
{
	if (ON_X86) /* __USER32_CS: a 32-bit program */
		return (((struct pt_regs___x86 *)registers)->cs & 0xffff) == 0x23;
	return ((struct pt_regs___arm64 *)registers)->pstate & 0x10;
}

SEC("tp_btf/sys_enter")
int on_enter(u64 *context)
{
	u32 slot = slot_of_current(bpf_get_current_pid_tgid()), zero = 0, index;
	struct made *mine;

	if (!slot)
		return 0;
	mine = bpf_map_lookup_elem(&made, &slot);
	if (!mine) {
		mine = bpf_map_lookup_elem(&none, &zero);
		if (mine)
			bpf_map_update_elem(&made, &slot, mine, 1 /* BPF_NOEXIST */);
		mine = bpf_map_lookup_elem(&made, &slot);
	}
	index = index_of(context[1], is_compat(context[0]));
	if (mine && index < 2 * EVERY_CALL && !mine->calls[index])
		mine->calls[index] = 1;
	return 0;
}

INLINE void note_file(u32 slot, u32 descriptor)
{
	struct task_struct___files *task = (struct task_struct___files *)bpf_get_current_task();
	struct fdtable *table = READ(READ(task, files), fdt);
	struct opened key = { .slot = slot };
	struct file *file = NULL;
	u64 *count, one = 1;
	struct mount *mount;
	struct inode *inode;

	if (descriptor >= READ(table, max_fds))
		return;
	bpf_probe_read_kernel(&file, sizeof(file), READ(table, fd) + descriptor);
	inode = READ(file, f_inode);
	mount = (void *)((char *)READ(file, f_path.mnt) -
			 (u64)__builtin_preserve_access_index(&((struct mount *)0)->mnt));
	key.mount = READ(mount, mnt_id);
	key.kind = READ(inode, i_mode) & S_IFMT;
	if (key.kind == S_IFBLK || key.kind == S_IFCHR)
		key.device = READ(inode, i_rdev);
	count = bpf_map_lookup_elem(&opened, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&opened, &key, &one, 0);
}

INLINE void note_socket(u32 slot, u64 address)
{
	struct connected key = { .slot = slot };
	unsigned short family = 0;
	u64 *count, one = 1;

	bpf_probe_read_user(&family, sizeof(family), (void *)address);
	if (family != AF_UNIX)
		return;
	bpf_probe_read_user_str(key.name, sizeof(key.name), (void *)(address + 2));
	if (!key.name[0])
		return;
	count = bpf_map_lookup_elem(&connected, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&connected, &key, &one, 0);
}

SEC("tp_btf/sys_exit")
int on_exit(u64 *context)
{
	s64 number = number_of(context[0]), result = context[1];
	u32 index = number, slot, *what;

	if (result < 0 && result != -EINPROGRESS)
		return 0;
	what = bpf_map_lookup_elem(&calls, &index);
	if (!what || *what == NOTHING || is_compat(context[0]))
		return 0;
	slot = slot_of_current(bpf_get_current_pid_tgid());
	if (!slot)
		return 0;
	if (*what == OPENS)
		note_file(slot, result);
	else if (ON_X86)
		note_socket(slot, ((struct pt_regs___x86 *)context[0])->si);
	else
		note_socket(slot, READ((struct pt_regs___arm64 *)context[0], regs[1]));
	return 0;
}

LICENSE_SECTION;
