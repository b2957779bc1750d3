#include "world.h"

#include <stdio.h>
#include <string.h>

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
	DEVICE(device);
	*current = g->mode;
	*pending = g->pending;
	return g->mig_capable ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned int mode, nvmlReturn_t *activation)
{
	DEVICE(device);
	if (!g->mig_capable)
		return NVML_ERROR_NOT_SUPPORTED;
	for (int i = 0; i < w.gis; i++)
		if (w.gi[i].gpu == GPU(device))
			return NVML_ERROR_IN_USE;
	change();
	g->pending = mode;
	if (!g->mig_reset)
		g->mode = mode;
	store(1);
	*activation = g->mode != mode ? NVML_ERROR_RESET_REQUIRED : NVML_SUCCESS;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is) { DEVICE(device); (void)g; *is = KIND(device) == IS_MIG; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) { DEVICE(device); *count = g->mig_capable ? 7 : 0; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig)
{
	DEVICE(device);
	for (int i = 0; i < w.cis; i++)
		if (w.ci[i].gpu == GPU(device) && index-- == 0) {
			mig->handle = HANDLE(IS_MIG, w.ci[i].gpu, w.ci[i].gi, w.ci[i].id);
			return NVML_SUCCESS;
		}
	(void)g;
	return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id) { DEVICE(device); (void)g; *id = GI(device); return KIND(device) == IS_MIG ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED; }
nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id) { DEVICE(device); (void)g; *id = CI(device); return KIND(device) == IS_MIG ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED; }

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig, nvmlDevice_t *device)
{
	DEVICE(mig);
	(void)g;
	device->handle = HANDLE(IS_GPU, GPU(mig), 0, 0);
	return KIND(mig) == IS_MIG ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
	DEVICE(device);
	struct ci *ci = find_ci(GPU(device), GI(device), CI(device));
	struct gi *gi = find_gi(GPU(device), GI(device));
	if (KIND(device) != IS_MIG || !ci || !gi)
		return NVML_ERROR_NOT_SUPPORTED;
	struct profile *p = find_profile(g, gi->profile);
	memset(attributes, 0, sizeof *attributes);
	attributes->gpuInstanceSliceCount = p->slices;
	attributes->computeInstanceSliceCount = ci->slices;
	attributes->memorySizeMB = p->mb;
	return NVML_SUCCESS;
}

static struct profile *numbered(struct gpu *g, unsigned int number)
{
	for (int i = 0; i < g->profiles; i++)
		if (g->profile[i].number == (int)number)
			return &g->profile[i];
	return NULL;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, unsigned int number, nvmlGpuInstanceProfileInfo_t *info)
{
	DEVICE(device);
	struct profile *p = numbered(g, number);
	if (!p)
		return NVML_ERROR_NOT_SUPPORTED;
	memset(info, 0, sizeof *info);
	info->id = p->id;
	info->sliceCount = p->slices;
	info->instanceCount = p->count;
	info->memorySizeMB = p->mb;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned int number, nvmlGpuInstanceProfileInfo_v2_t *info)
{
	DEVICE(device);
	struct profile *p = numbered(g, number);
	if (!p)
		return NVML_ERROR_NOT_SUPPORTED;
	if (info->version == nvmlGpuInstanceProfileInfo_v3) {
		nvmlGpuInstanceProfileInfo_v3_t *v3 = (void *)info;
		v3->id = p->id, v3->sliceCount = p->slices, v3->instanceCount = p->count, v3->memorySizeMB = p->mb, v3->capabilities = p->caps;
		snprintf(v3->name, sizeof v3->name, "MIG %s", p->name);
		return NVML_SUCCESS;
	}
	if (info->version != nvmlGpuInstanceProfileInfo_v2)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	info->id = p->id, info->sliceCount = p->slices, info->instanceCount = p->count, info->memorySizeMB = p->mb;
	snprintf(info->name, sizeof info->name, "MIG %s", p->name);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t device, unsigned int id, nvmlGpuInstancePlacement_t *places, unsigned int *count)
{
	DEVICE(device);
	struct profile *p = find_profile(g, id);
	if (!g->mode)
		return NVML_ERROR_NOT_SUPPORTED;
	if (!p)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (unsigned int i = 0; places && i < p->places && i < *count; i++)
		places[i] = (nvmlGpuInstancePlacement_t){p->place[i].start, p->place[i].size};
	*count = p->places;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *instances, unsigned int *count)
{
	DEVICE(device);
	(void)g;
	*count = 0;
	for (int i = 0; i < w.gis; i++)
		if (w.gi[i].gpu == GPU(device) && w.gi[i].profile == id)
			instances[(*count)++].handle = HANDLE(IS_GI, GPU(device), w.gi[i].id, 0);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *instance)
{
	DEVICE(device);
	(void)g;
	instance->handle = HANDLE(IS_GI, GPU(device), id, 0);
	return find_gi(GPU(device), id) ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t fits(int gpu, struct profile *p, const nvmlGpuInstancePlacement_t *at)
{
	unsigned int same = 0, listed = 0;
	for (unsigned int i = 0; i < p->places; i++)
		listed |= p->place[i].start == at->start && p->place[i].size == at->size;
	if (!listed)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (int i = 0; i < w.gis; i++) {
		if (w.gi[i].gpu != gpu)
			continue;
		same += w.gi[i].profile == p->id;
		if (w.gi[i].at.start < at->start + at->size && at->start < w.gi[i].at.start + w.gi[i].at.size)
			return NVML_ERROR_INSUFFICIENT_RESOURCES;
	}
	return same < p->count ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_RESOURCES;
}

nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t device, unsigned int id, const nvmlGpuInstancePlacement_t *at, nvmlGpuInstance_t *instance)
{
	DEVICE(device);
	if (!g->mode)
		return NVML_ERROR_NOT_SUPPORTED;
	change();
	struct profile *p = find_profile(g, id);
	nvmlReturn_t ret = p ? fits(GPU(device), p, at) : NVML_ERROR_INVALID_ARGUMENT;
	if (ret == NVML_SUCCESS) {
		unsigned int number = 1;
		while (find_gi(GPU(device), number))
			number++;
		w.gi[w.gis++] = (struct gi){GPU(device), number, id, {at->start, at->size}};
		instance->handle = HANDLE(IS_GI, GPU(device), number, 0);
	}
	store(ret == NVML_SUCCESS);
	return ret;
}

nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t instance, nvmlGpuInstanceInfo_t *info)
{
	ENTER();
	struct gi *gi = find_gi(GPU(instance), GI(instance));
	if (!gi)
		return NVML_ERROR_NOT_FOUND;
	info->device.handle = HANDLE(IS_GPU, gi->gpu, 0, 0);
	info->id = gi->id;
	info->profileId = gi->profile;
	info->placement = (nvmlGpuInstancePlacement_t){gi->at.start, gi->at.size};
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t instance)
{
	ENTER();
	nvmlReturn_t ret = NVML_SUCCESS;
	change();
	struct gi *gi = find_gi(GPU(instance), GI(instance));
	if (!gi)
		ret = NVML_ERROR_NOT_FOUND;
	for (int i = 0; i < w.cis; i++)
		if (w.ci[i].gpu == GPU(instance) && w.ci[i].gi == GI(instance))
			ret = NVML_ERROR_IN_USE;
	if (ret == NVML_SUCCESS)
		*gi = w.gi[--w.gis];
	store(ret == NVML_SUCCESS);
	return ret;
}

// computed finds a compute profile of a GPU instance by its number, or id.
static struct compute *computed(nvmlGpuInstance_t instance, int number, int id)
{
	struct gi *gi = find_gi(GPU(instance), GI(instance));
	struct gpu *g = &w.gpu[GPU(instance)];
	struct profile *p = gi ? find_profile(g, gi->profile) : NULL;
	for (int i = 0; p && i < g->computes; i++)
		if (g->compute[i].of == p->number && (g->compute[i].number == number || (number < 0 && (int)g->compute[i].id == id)))
			return &g->compute[i];
	return NULL;
}

nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t instance, unsigned int number, unsigned int engine, nvmlComputeInstanceProfileInfo_t *info)
{
	ENTER();
	struct compute *c = computed(instance, number, 0);
	if (!c || engine != NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		return NVML_ERROR_NOT_SUPPORTED;
	memset(info, 0, sizeof *info);
	info->id = c->id;
	info->sliceCount = c->slices;
	info->instanceCount = c->count;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t instance, unsigned int id, nvmlComputeInstance_t *instances, unsigned int *count)
{
	ENTER();
	*count = 0;
	for (int i = 0; i < w.cis; i++)
		if (w.ci[i].gpu == GPU(instance) && w.ci[i].gi == GI(instance) && w.ci[i].profile == id)
			instances[(*count)++].handle = HANDLE(IS_CI, GPU(instance), GI(instance), w.ci[i].id);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t instance, unsigned int id, nvmlComputeInstance_t *compute)
{
	ENTER();
	compute->handle = HANDLE(IS_CI, GPU(instance), GI(instance), id);
	return find_ci(GPU(instance), GI(instance), id) ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t instance, unsigned int id, nvmlComputeInstance_t *compute)
{
	ENTER();
	nvmlReturn_t ret = NVML_SUCCESS;
	unsigned int used = 0, number = 0;
	change();
	struct gi *gi = find_gi(GPU(instance), GI(instance));
	struct compute *c = computed(instance, -1, id);
	for (int i = 0; i < w.cis; i++)
		if (w.ci[i].gpu == GPU(instance) && w.ci[i].gi == GI(instance))
			used += w.ci[i].slices, number = w.ci[i].id + 1;
	if (!gi || !c)
		ret = NVML_ERROR_INVALID_ARGUMENT;
	else if (used + c->slices > find_profile(&w.gpu[GPU(instance)], gi->profile)->slices)
		ret = NVML_ERROR_INSUFFICIENT_RESOURCES;
	else {
		struct ci ci = {.gpu = GPU(instance), .gi = GI(instance), .id = number, .profile = id, .slices = c->slices};
		snprintf(ci.uuid, sizeof ci.uuid, "MIG-%08x-0000-4000-8000-%012x", ++w.made, 0xcafe);
		w.ci[w.cis++] = ci;
		compute->handle = HANDLE(IS_CI, ci.gpu, ci.gi, ci.id);
	}
	store(ret == NVML_SUCCESS);
	return ret;
}

nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t compute, nvmlComputeInstanceInfo_t *info)
{
	ENTER();
	struct ci *ci = find_ci(GPU(compute), GI(compute), CI(compute));
	if (!ci)
		return NVML_ERROR_NOT_FOUND;
	memset(info, 0, sizeof *info);
	info->device.handle = HANDLE(IS_GPU, ci->gpu, 0, 0); // as nvml.h says
	info->gpuInstance.handle = HANDLE(IS_GI, ci->gpu, ci->gi, 0);
	info->id = ci->id;
	info->profileId = ci->profile;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t compute)
{
	ENTER();
	nvmlReturn_t ret = NVML_SUCCESS;
	change();
	struct ci *ci = find_ci(GPU(compute), GI(compute), CI(compute));
	if (!ci)
		ret = NVML_ERROR_NOT_FOUND;
	for (int i = 0; i < w.processes; i++)
		if (w.process[i].gpu == GPU(compute) && w.process[i].gi == GI(compute) && w.process[i].ci == CI(compute))
			ret = NVML_ERROR_IN_USE;
	if (ret == NVML_SUCCESS)
		*ci = w.ci[--w.cis];
	store(ret == NVML_SUCCESS);
	return ret;
}
