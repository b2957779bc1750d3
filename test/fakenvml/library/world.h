// A stand-in for NVIDIA's management library (NVML): its GPUs are lines of
// fakenvml.conf in the directory that the library lies in, which tests write;
// what callers change is in fakenvml.state. Everything is read anew at each
// call, so that it changes while somebody watches.
#ifndef WORLD_H
#define WORLD_H

#include <nvml.h>
#include <stdint.h>

#define MAX_GPUS 16
#define MAX_PROFILES 24
#define MAX_PLACES 16
#define MAX_INSTANCES 32
#define MAX_PROCESSES 32
#define MAX_RULES 16
#define MAX_LINKS 8
#define MAX_CGROUPS 8

struct place { unsigned int start, size; };

struct profile { // of GPU instances
	int number; // NVML_GPU_INSTANCE_PROFILE_*
	unsigned int id, slices, count, caps, places;
	unsigned long long mb;
	char name[96];
	struct place place[MAX_PLACES];
};

struct compute { // profile of compute instances
	int of, number; // NVML_*_INSTANCE_PROFILE_*
	unsigned int id, slices, count;
};

struct gpu {
	char uuid[96], pci[32], name[96];
	unsigned int minor, arch, major, sub, ecc, virt, remap_failed, recovery;
	unsigned long long mb, used_mb;
	int lost, links[MAX_LINKS], link_count; // the GPU at the other end; -1: a switch
	int mig_capable, mig_reset;             // a change of the mode stays pending
	unsigned int util, enc, dec, temperature, power;
	unsigned long long ecc_errors, ecc_ever, corrected, corrected_ever; // since the driver was loaded, and ever
	unsigned int slowdown, shutdown, throttled, remap_pending, retire_pending; // degrees, 0: not told
	int margin; // degrees to the slowdown of those that do not tell it
	struct profile profile[MAX_PROFILES];
	int profiles;
	struct compute compute[64];
	int computes;
	// state
	unsigned int mode, pending, compute_mode;
};

struct gi { int gpu; unsigned int id, profile; struct place at; };
struct ci { int gpu; unsigned int gi, id, profile, slices; char uuid[96]; };
struct process { int gpu; char kind; unsigned int pid, gi, ci, util, enc, dec; unsigned long long mb; };
struct cgroup { int gpu; unsigned long long mb; char path[256]; }; // what its processes use
struct rule { char verb[16], function[64]; int code, gpu; }; // gpu -1: all

struct world {
	char driver[64];
	int cuda;
	struct gpu gpu[MAX_GPUS];
	int gpus;
	struct process process[MAX_PROCESSES];
	int processes;
	struct cgroup cgroup[MAX_CGROUPS];
	int cgroups;
	struct rule rule[MAX_RULES];
	int rules;
	struct gi gi[MAX_INSTANCES];
	int gis;
	struct ci ci[MAX_INSTANCES];
	int cis;
	unsigned int made; // instances so far
};

extern struct world w;

// path is that of a file in the library's directory.
const char *path(const char *name);
// load reads the world.
void load(void);
// change reads the world and keeps others from changing it; store writes it and
// lets them.
void change(void);
void store(int changed);
// note appends a line to fakenvml.log.
void note(const char *format, ...);
// enter is at the beginning of each function: it loads the world and does what
// rules of the configuration say.
nvmlReturn_t enter(const char *function);

// hold opens a GPU until NVML is shut down, as a handle of it does.
void hold(int gpu);

// failing is what a rule has a function return for one GPU.
nvmlReturn_t failing(const char *function, int gpu);

#define ENTER()                                   \
	do {                                          \
		nvmlReturn_t entered = enter(__func__);   \
		if (entered != NVML_SUCCESS)              \
			return entered;                       \
	} while (0)

// Handles are numbers: what it is, GPU, GPU instance, compute instance.
enum { IS_GPU = 1, IS_MIG = 2, IS_GI = 3, IS_CI = 4 };
#define HANDLE(kind, gpu, gi, ci) ((void *)(((uintptr_t)(kind) << 24) | ((uintptr_t)(gpu) << 16) | ((uintptr_t)(gi) << 8) | (uintptr_t)(ci)))
#define KIND(h) ((int)((uintptr_t)(h).handle >> 24))
#define GPU(h) ((int)((uintptr_t)(h).handle >> 16 & 0xff))
#define GI(h) ((unsigned int)((uintptr_t)(h).handle >> 8 & 0xff))
#define CI(h) ((unsigned int)((uintptr_t)(h).handle & 0xff))

// DEVICE checks the handle of a GPU, or of an instance on it.
#define DEVICE(device)                                                    \
	ENTER();                                                              \
	if ((KIND(device) != IS_GPU && KIND(device) != IS_MIG) || GPU(device) >= w.gpus) \
		return NVML_ERROR_INVALID_ARGUMENT;                               \
	struct gpu *g = &w.gpu[GPU(device)];                                  \
	nvmlReturn_t entered_for = failing(__func__, GPU(device));            \
	if (entered_for != NVML_SUCCESS)                                      \
		return entered_for;                                               \
	if (g->lost)                                                          \
	return NVML_ERROR_GPU_IS_LOST

struct gi *find_gi(int gpu, unsigned int id);
struct ci *find_ci(int gpu, unsigned int gi, unsigned int id);
struct profile *find_profile(struct gpu *g, unsigned int id);
void fill_pci(nvmlPciInfo_t *pci, const char *address);

#endif
