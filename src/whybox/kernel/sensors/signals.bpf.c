/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who sent which signal to a container's tasks, and what the kernel did with it. */
#include "events.h"
#include "scope.h"

/* A signal without a siginfo of its own (include/linux/sched/signal.h). */
#define SEND_SIG_NOINFO 0
#define SEND_SIG_PRIV 1
#define SI_USER 0
#define SI_KERNEL 0x80

struct kernel_siginfo {
	int si_code;
} CORE;

struct sent {
	u64 at_ns;
	u32 slot;
	s32 signal, code, result;
	u32 to_pid, to_tgid, from_pid, from_tgid;
	u32 group; /* for the whole process, not for one thread */
	char to_comm[16], from_comm[16];
};

/* The signals that are not told, bit 0 is signal 1. */
struct {
	ARRAY_OF(u64, 1);
} unwanted SEC(".maps");

SEC("tp_btf/signal_generate")
int on_generate(u64 *context)
{
	s32 signal = context[0];
	struct kernel_siginfo *info = (struct kernel_siginfo *)context[1];
	struct task_struct *to = (struct task_struct *)context[2];
	u64 mask, *noise = bpf_map_lookup_elem(&unwanted, &(u32){ 0 });
	struct sent *event;
	u32 slot;

	mask = noise ? *noise : 0;
	if (mask >> ((signal - 1) & 63) & 1)
		return 0;
	slot = slot_of(to);
	if (!slot)
		return 0;
	event = event_room(sizeof(*event));
	if (!event)
		return 0;
	event->at_ns = bpf_ktime_get_ns();
	event->slot = slot;
	event->signal = signal;
	if ((u64)info == SEND_SIG_NOINFO)
		event->code = SI_USER;
	else if ((u64)info == SEND_SIG_PRIV)
		event->code = SI_KERNEL;
	else
		event->code = READ(info, si_code);
	event->group = context[3];
	event->result = context[4];
	event->to_pid = READ(to, pid);
	event->to_tgid = READ(to, tgid);
	event->from_pid = bpf_get_current_pid_tgid();
	event->from_tgid = bpf_get_current_pid_tgid() >> 32;
	READ_STR(event->to_comm, to, comm);
	bpf_get_current_comm(event->from_comm, sizeof(event->from_comm));
	event_done(event);
	return 0;
}

LICENSE_SECTION;
