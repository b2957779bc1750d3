#define _GNU_SOURCE
#include "world.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

// set is an event set: events are lines of fakenvml.events that were written
// after it was made: GPU, type, data, GPU instance, compute instance.
struct nvmlEventSet_st {
	int seen; // lines
	unsigned long long mask[MAX_GPUS];
};

static int lines(void)
{
	int count = 0, c;
	FILE *file = fopen(path("fakenvml.events"), "re");
	if (!file)
		return 0;
	while ((c = fgetc(file)) != EOF)
		count += c == '\n';
	fclose(file);
	return count;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
	ENTER();
	set->handle = calloc(1, sizeof *set->handle);
	set->handle->seen = lines();
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) { ENTER(); free(set.handle); return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
	DEVICE(device);
	(void)g;
	*types = nvmlEventTypeXidCriticalError | nvmlEventTypeDoubleBitEccError | nvmlEventTypeSingleBitEccError;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
	DEVICE(device);
	set.handle->mask[GPU(device)] |= types;
	note("watched %s\n", g->uuid);
	return NVML_SUCCESS;
}

// next finds an event that the set wants.
static int next(nvmlEventSet_t set, nvmlEventData_t *data)
{
	char line[256];
	int at = 0, found = 0;
	FILE *file = fopen(path("fakenvml.events"), "re");
	if (!file)
		return 0;
	while (!found && fgets(line, sizeof line, file)) {
		int gpu;
		if (at++ < set.handle->seen)
			continue;
		set.handle->seen = at;
		if (sscanf(line, "%d %llu %llu %u %u", &gpu, &data->eventType, &data->eventData, &data->gpuInstanceId, &data->computeInstanceId) != 5)
			continue;
		if (gpu < 0 || gpu >= MAX_GPUS || !(set.handle->mask[gpu] & data->eventType))
			continue;
		data->device.handle = HANDLE(IS_GPU, gpu, 0, 0);
		found = 1;
	}
	fclose(file);
	return found;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int milliseconds)
{
	for (unsigned int waited = 0;; waited += 20) {
		ENTER();
		if (next(set, data))
			return NVML_SUCCESS;
		for (int i = 0; i < w.gpus; i++)
			if (w.gpu[i].lost && set.handle->mask[i])
				return NVML_ERROR_GPU_IS_LOST;
		if (waited >= milliseconds)
			return NVML_ERROR_TIMEOUT;
		usleep(20000);
	}
}
