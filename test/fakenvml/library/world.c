#define _GNU_SOURCE
#include "world.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

struct world w;
static int initialized, lock = -1, open_gpus[MAX_GPUS]; // descriptors and 1; 0: it is not open

const char *path(const char *name)
{
	static char paths[4][512];
	static int next;
	Dl_info info;
	char *out = paths[next = (next + 1) % 4], *slash;
	if (!dladdr((void *)path, &info))
		abort();
	snprintf(out, 512, "%s", info.dli_fname);
	slash = strrchr(out, '/');
	snprintf(slash ? slash + 1 : out, 512 - (slash ? slash + 1 - out : 0), "%s", name);
	return out;
}

static void read_profile(struct gpu *g, const char *line)
{
	struct profile p = {0};
	if (sscanf(line, "%*d %d %u %u %u %llu %u %95s", &p.number, &p.id, &p.slices, &p.count, &p.mb, &p.caps, p.name) == 7)
		g->profile[g->profiles++] = p;
}

// read_of reads a line about a GPU, whose number it begins with.
static void read_of(const char *key, const char *line)
{
	struct gpu *g;
	int index = -1, end;
	sscanf(line, "%d", &index);
	if (index < 0 || index >= w.gpus)
		return;
	g = &w.gpu[index];
	if (!strcmp(key, "lost"))
		g->lost = 1;
	else if (!strcmp(key, "mig"))
		sscanf(line, "%*d %d %d", &g->mig_capable, &g->mig_reset);
	else if (!strcmp(key, "health"))
		sscanf(line, "%*d %u %u", &g->remap_failed, &g->recovery);
	else if (!strcmp(key, "usage"))
		sscanf(line, "%*d %u %llu %u %u %u %u %llu", &g->util, &g->used_mb, &g->enc, &g->dec, &g->temperature, &g->power, &g->ecc_errors);
	else if (!strcmp(key, "vitals"))
		sscanf(line, "%*d %u %u %d %u %u %u", &g->slowdown, &g->shutdown, &g->margin, &g->throttled, &g->remap_pending, &g->retire_pending);
	else if (!strcmp(key, "ecc"))
		sscanf(line, "%*d %llu %llu %llu", &g->ecc_ever, &g->corrected, &g->corrected_ever);
	else if (!strcmp(key, "link") && g->link_count < MAX_LINKS && sscanf(line, "%*d %d", &end) == 1)
		g->links[g->link_count++] = end;
	else if (!strcmp(key, "profile") && g->profiles < MAX_PROFILES)
		read_profile(g, line);
	else if (!strcmp(key, "place")) {
		unsigned int id, start, size;
		struct profile *p;
		if (sscanf(line, "%*d %u %u %u", &id, &start, &size) == 3 && (p = find_profile(g, id)) && p->places < MAX_PLACES)
			p->place[p->places++] = (struct place){start, size};
	} else if (!strcmp(key, "compute") && g->computes < 64) {
		struct compute c = {0};
		if (sscanf(line, "%*d %d %d %u %u %u", &c.of, &c.number, &c.id, &c.slices, &c.count) == 5)
			g->compute[g->computes++] = c;
	} else if (!strcmp(key, "process") && w.processes < MAX_PROCESSES) {
		struct process p = {.gpu = index, .gi = 0xffffffff, .ci = 0xffffffff};
		if (sscanf(line, "%*d %c %u %llu %u %u", &p.kind, &p.pid, &p.mb, &p.gi, &p.ci) >= 3)
			w.process[w.processes++] = p;
	} else if (!strcmp(key, "busy") && w.processes) // the process before it
		sscanf(line, "%*d %u %u %u", &w.process[w.processes - 1].util, &w.process[w.processes - 1].enc, &w.process[w.processes - 1].dec);
	else if (!strcmp(key, "cgroup") && w.cgroups < MAX_CGROUPS) {
		struct cgroup c = {.gpu = index};
		if (sscanf(line, "%*d %llu %255s", &c.mb, c.path) == 2)
			w.cgroup[w.cgroups++] = c;
	}
}

static void read_line(const char *key, const char *line)
{
	if (!strcmp(key, "driver"))
		sscanf(line, "%63s", w.driver);
	else if (!strcmp(key, "cuda"))
		sscanf(line, "%d", &w.cuda);
	else if (!strcmp(key, "rule") && w.rules < MAX_RULES) {
		struct rule r = {.gpu = -1};
		if (sscanf(line, "%15s %63s %d %d", r.verb, r.function, &r.code, &r.gpu) >= 2)
			w.rule[w.rules++] = r;
	} else if (!strcmp(key, "gpu") && w.gpus < MAX_GPUS) {
		struct gpu g = {0};
		if (sscanf(line, "%95s %31s %u %u %u %u %llu %u %u %95[^\n]", g.uuid, g.pci, &g.minor, &g.arch, &g.major, &g.sub, &g.mb, &g.ecc, &g.virt, g.name) == 10)
			w.gpu[w.gpus++] = g;
	} else if (!strcmp(key, "gi") && w.gis < MAX_INSTANCES) {
		struct gi i;
		if (sscanf(line, "%d %u %u %u %u", &i.gpu, &i.id, &i.profile, &i.at.start, &i.at.size) == 5)
			w.gi[w.gis++] = i;
	} else if (!strcmp(key, "ci") && w.cis < MAX_INSTANCES) {
		struct ci i;
		if (sscanf(line, "%d %u %u %u %u %95s", &i.gpu, &i.gi, &i.id, &i.profile, &i.slices, i.uuid) == 6)
			w.ci[w.cis++] = i;
	} else if (!strcmp(key, "mode")) {
		unsigned int gpu, mode, pending;
		if (sscanf(line, "%u %u %u", &gpu, &mode, &pending) == 3 && gpu < (unsigned int)w.gpus)
			w.gpu[gpu].mode = mode, w.gpu[gpu].pending = pending;
	} else if (!strcmp(key, "compute_mode")) {
		unsigned int gpu, mode;
		if (sscanf(line, "%u %u", &gpu, &mode) == 2 && gpu < (unsigned int)w.gpus)
			w.gpu[gpu].compute_mode = mode;
	} else if (!strcmp(key, "made"))
		sscanf(line, "%u", &w.made);
	else
		read_of(key, line);
}

static void read_file(const char *name)
{
	char line[512], key[32];
	int length;
	FILE *file = fopen(path(name), "re");
	if (!file)
		return;
	while (fgets(line, sizeof line, file))
		if (sscanf(line, "%31s %n", key, &length) == 1)
			read_line(key, line + length);
	fclose(file);
}

void load(void)
{
	memset(&w, 0, sizeof w);
	read_file("fakenvml.conf");
	read_file("fakenvml.state");
}

void change(void)
{
	lock = open(path("fakenvml.lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (lock < 0 || flock(lock, LOCK_EX))
		abort();
	load();
}

void store(int changed)
{
	if (changed) {
		FILE *file = fopen(path("fakenvml.new"), "we");
		if (!file)
			abort();
		fprintf(file, "made %u\n", w.made);
		for (int i = 0; i < w.gpus; i++)
			fprintf(file, "mode %d %u %u\ncompute_mode %d %u\n", i, w.gpu[i].mode, w.gpu[i].pending, i, w.gpu[i].compute_mode);
		for (int i = 0; i < w.gis; i++)
			fprintf(file, "gi %d %u %u %u %u\n", w.gi[i].gpu, w.gi[i].id, w.gi[i].profile, w.gi[i].at.start, w.gi[i].at.size);
		for (int i = 0; i < w.cis; i++)
			fprintf(file, "ci %d %u %u %u %u %s\n", w.ci[i].gpu, w.ci[i].gi, w.ci[i].id, w.ci[i].profile, w.ci[i].slices, w.ci[i].uuid);
		if (fclose(file) || rename(path("fakenvml.new"), path("fakenvml.state")))
			abort();
	}
	close(lock);
}

void note(const char *format, ...)
{
	va_list args;
	FILE *file = fopen(path("fakenvml.log"), "ae");
	if (!file)
		return;
	va_start(args, format);
	vfprintf(file, format, args);
	va_end(args);
	fclose(file);
}

// ruled_for finds what a rule makes a function do for a GPU.
static struct rule *ruled_for(const char *verb, const char *function, int gpu)
{
	for (int i = 0; i < w.rules; i++)
		if (w.rule[i].gpu == gpu && !strcmp(w.rule[i].function, function) && !strcmp(w.rule[i].verb, verb))
			return &w.rule[i];
	return NULL;
}

// ruled finds what a rule makes a function do whatever the GPU.
static struct rule *ruled(const char *verb, const char *function) { return ruled_for(verb, function, -1); }

nvmlReturn_t failing(const char *function, int gpu)
{
	struct rule *rule = ruled_for("fail", function, gpu);
	return rule ? rule->code : NVML_SUCCESS;
}

nvmlReturn_t enter(const char *function)
{
	struct rule *rule;
	load();
	if (ruled("crash", function))
		*(volatile int *)0 = 0;
	if (ruled("print", function))
		puts("a library that writes to the standard output"), fflush(stdout);
	if (ruled("hang", function)) // until the rule goes
		for (note("hang %s\n", function); ruled("hang", function); load())
			usleep(10000);
	if ((rule = ruled("fail", function)))
		return rule->code;
	return initialized || !strcmp(function, "nvmlInit_v2") ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

void hold(int gpu)
{
	char name[32];
	snprintf(name, sizeof name, "fakenvml.gpu%d", gpu);
	if (!open_gpus[gpu])
		open_gpus[gpu] = open(path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600) + 1;
}

nvmlReturn_t nvmlInit_v2(void)
{
	ENTER();
	if (access(path("fakenvml.conf"), R_OK))
		return NVML_ERROR_DRIVER_NOT_LOADED;
	if (strcmp(w.driver, VERSION))
		return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
	initialized++;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }

nvmlReturn_t nvmlShutdown(void)
{
	if (!initialized)
		return NVML_ERROR_UNINITIALIZED;
	if (--initialized)
		return NVML_SUCCESS;
	for (int i = 0; i < MAX_GPUS; i++) {
		if (open_gpus[i])
			close(open_gpus[i] - 1);
		open_gpus[i] = 0;
	}
	return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result)
{
	switch (result) {
	case NVML_SUCCESS: return "Success";
	case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
	case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
	case NVML_ERROR_NOT_FOUND: return "Not Found";
	case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
	case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
	case NVML_ERROR_IN_USE: return "In use by another client";
	case NVML_ERROR_INSUFFICIENT_RESOURCES: return "Insufficient Resources";
	case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
	default: return "Unknown Error";
	}
}

struct gi *find_gi(int gpu, unsigned int id)
{
	for (int i = 0; i < w.gis; i++)
		if (w.gi[i].gpu == gpu && w.gi[i].id == id)
			return &w.gi[i];
	return NULL;
}

struct ci *find_ci(int gpu, unsigned int gi, unsigned int id)
{
	for (int i = 0; i < w.cis; i++)
		if (w.ci[i].gpu == gpu && w.ci[i].gi == gi && w.ci[i].id == id)
			return &w.ci[i];
	return NULL;
}

struct profile *find_profile(struct gpu *g, unsigned int id)
{
	for (int i = 0; i < g->profiles; i++)
		if (g->profile[i].id == id)
			return &g->profile[i];
	return NULL;
}
