/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which program a process was running when something was seen of it. A pid alone does not say: a
 * process may execute another program, and end, before user space looks at what it has mapped.
 */
#ifndef WHYBOX_IMAGE_H
#define WHYBOX_IMAGE_H

#include "core.h"

struct inode {
	unsigned long i_ino;
} CORE;

struct file {
	struct inode *f_inode;
} CORE;

struct mm_struct {
	unsigned long start_code, start_stack;
	struct file *exe_file;
} CORE;

struct task_struct___image {
	struct mm_struct *mm;
	u64 self_exec_id;
} CORE;

struct image_key {
	u32 tgid;
	u32 exec; /* how often it and its forebears have called exec */
};

/* Alike in a process and what it forks without exec, as is all that they have mapped by then;
 * otherwise alike by accident alone, since the places are random. */
struct image {
	u64 start_stack, start_code, inode;
	char comm[16];
};

struct {
	LRU_HASH_OF(struct image_key, struct image, 4096);
} images SEC(".maps");

/* Each is told at once: it may be gone soon. What finds no room is in `images` still. */
struct news {
	struct image_key key;
	struct image image;
};

struct {
	RING_OF(1 << 16);
} news SEC(".maps");

INLINE u32 exec_of(struct task_struct *task)
{
	return READ((struct task_struct___image *)task, self_exec_id);
}

/* Leave a note of the image, once, and of what the process is called by now. */
INLINE void note_image(struct task_struct *task, u32 tgid, u32 exec)
{
	struct image_key key = { .tgid = tgid, .exec = exec };
	struct image *known = bpf_map_lookup_elem(&images, &key), image = {};
	struct task_struct *leader = READ(task, group_leader);
	struct mm_struct *mm;
	struct news *told;

	if (known) {
		READ_STR(known->comm, leader, comm);
		return;
	}
	mm = READ((struct task_struct___image *)task, mm);
	image.start_code = READ(mm, start_code);
	/* In the middle of exec: the places are set at its end (load_elf_binary(), fs/binfmt_elf.c),
	 * so wait until it is seen again. */
	if (mm && !image.start_code)
		return;
	image.start_stack = READ(mm, start_stack);
	image.inode = READ(READ(READ(mm, exe_file), f_inode), i_ino);
	READ_STR(image.comm, leader, comm);
	if (bpf_map_update_elem(&images, &key, &image, BPF_NOEXIST))
		return;
	told = bpf_ringbuf_reserve(&news, sizeof(*told), 0);
	if (!told)
		return;
	told->key = key;
	told->image = image;
	bpf_ringbuf_submit(told, 0);
}

#endif
