#include "world.h"

#include <stdio.h>
#include <string.h>

static nvmlReturn_t text(char *out, unsigned int length, const char *value)
{
	if (strlen(value) >= length)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	strcpy(out, value);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) { ENTER(); return text(version, length, w.driver); }
nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) { ENTER(); return text(version, length, "13." VERSION); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { ENTER(); *version = w.cuda; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { ENTER(); *count = w.gpus; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
	ENTER();
	if (index >= (unsigned int)w.gpus)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (w.gpu[index].lost)
		return NVML_ERROR_GPU_IS_LOST;
	if (failing(__func__, index) != NVML_SUCCESS)
		return failing(__func__, index);
	hold(index);
	device->handle = HANDLE(IS_GPU, index, 0, 0);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
	ENTER();
	for (int i = 0; i < w.gpus; i++)
		hold(i); // it searches (nvml.h)
	for (int i = 0; i < w.gpus; i++)
		if (!strcmp(w.gpu[i].uuid, uuid)) {
			device->handle = HANDLE(IS_GPU, i, 0, 0);
			return w.gpu[i].lost ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
		}
	for (int i = 0; i < w.cis; i++)
		if (!strcmp(w.ci[i].uuid, uuid)) {
			device->handle = HANDLE(IS_MIG, w.ci[i].gpu, w.ci[i].gi, w.ci[i].id);
			return NVML_SUCCESS;
		}
	return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *address, nvmlDevice_t *device)
{
	ENTER();
	for (int i = 0; i < w.gpus; i++)
		if (!strcasecmp(w.gpu[i].pci, address)) {
			if (w.gpu[i].lost)
				return NVML_ERROR_GPU_IS_LOST;
			hold(i);
			device->handle = HANDLE(IS_GPU, i, 0, 0);
			return NVML_SUCCESS;
		}
	return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) { DEVICE(device); return text(name, length, g->name); }
nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor) { DEVICE(device); *minor = g->minor; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, nvmlBrandType_t *brand) { DEVICE(device); *brand = NVML_BRAND_NVIDIA; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *arch) { DEVICE(device); *arch = g->arch; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
	DEVICE(device);
	if (KIND(device) == IS_GPU)
		return text(uuid, length, g->uuid);
	struct ci *ci = find_ci(GPU(device), GI(device), CI(device));
	return ci ? text(uuid, length, ci->uuid) : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
	DEVICE(device);
	*index = GPU(device);
	for (int i = 0, at = 0; KIND(device) == IS_MIG && i < w.cis; i++)
		if (w.ci[i].gpu == GPU(device)) {
			if (w.ci[i].gi == GI(device) && w.ci[i].id == CI(device))
				*index = at;
			at++;
		}
	(void)g;
	return NVML_SUCCESS;
}

void fill_pci(nvmlPciInfo_t *pci, const char *address)
{
	memset(pci, 0, sizeof *pci);
	sscanf(address, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
	snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
	snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff, pci->device & 0xff);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) { DEVICE(device); fill_pci(pci, g->pci); return NVML_SUCCESS; }

// part is what an instance has, and what of it is in use.
static nvmlReturn_t part(nvmlDevice_t device, unsigned long long *total, unsigned long long *used)
{
	struct gi *gi = find_gi(GPU(device), GI(device));
	if (!gi)
		return NVML_ERROR_NOT_FOUND;
	*total = find_profile(&w.gpu[gi->gpu], gi->profile)->mb << 20;
	*used = 0;
	for (int i = 0; i < w.processes; i++)
		if (w.process[i].gpu == gi->gpu && w.process[i].gi == gi->id)
			*used += w.process[i].mb << 20;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	DEVICE(device);
	if (KIND(device) == IS_MIG) {
		nvmlReturn_t ret = part(device, &memory->total, &memory->used);
		memory->free = memory->total - memory->used;
		return ret;
	}
	memory->total = g->mb << 20;
	memory->used = (g->used_mb + 500) << 20; // with what the driver keeps
	memory->free = memory->total - memory->used;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	DEVICE(device);
	if (memory->version != nvmlMemory_v2)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	if (KIND(device) == IS_MIG) {
		nvmlReturn_t ret = part(device, &memory->total, &memory->used);
		memory->reserved = 0;
		memory->free = memory->total - memory->used;
		return ret;
	}
	memory->total = g->mb << 20;
	memory->used = g->used_mb << 20;
	memory->reserved = 500 << 20;
	memory->free = memory->total - memory->used - memory->reserved;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
	DEVICE(device);
	*major = g->major;
	*minor = g->sub;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending)
{
	DEVICE(device);
	*current = *pending = g->ecc ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter, unsigned long long *count)
{
	DEVICE(device);
	if (type == NVML_MEMORY_ERROR_TYPE_CORRECTED)
		*count = counter == NVML_AGGREGATE_ECC ? g->corrected_ever : g->corrected;
	else
		*count = counter == NVML_AGGREGATE_ECC ? g->ecc_ever : g->ecc_errors;
	return g->ecc ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device, nvmlGpuVirtualizationMode_t *mode) { DEVICE(device); *mode = g->virt; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending, unsigned int *failed)
{
	DEVICE(device);
	*corrected = *uncorrected = 0;
	*pending = g->remap_pending;
	*failed = g->remap_failed;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
	DEVICE(device);
	for (int i = 0; i < count; i++) {
		values[i].nvmlReturn = values[i].fieldId == NVML_FI_DEV_GET_GPU_RECOVERY_ACTION ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
		values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
		values[i].value.uiVal = g->recovery;
	}
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *active)
{
	DEVICE(device);
	if (!g->link_count)
		return NVML_ERROR_NOT_SUPPORTED;
	if (link >= (unsigned int)g->link_count)
		return NVML_ERROR_INVALID_ARGUMENT;
	*active = NVML_FEATURE_ENABLED;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link, nvmlIntNvLinkDeviceType_t *type)
{
	DEVICE(device);
	*type = g->links[link] < 0 ? NVML_NVLINK_DEVICE_TYPE_SWITCH : NVML_NVLINK_DEVICE_TYPE_GPU;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci)
{
	DEVICE(device);
	fill_pci(pci, w.gpu[g->links[link]].pci);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
	DEVICE(device);
	rates->gpu = rates->memory = g->util;
	return g->mode ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period) { DEVICE(device); *percent = g->enc; *period = 0; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period) { DEVICE(device); *percent = g->dec; *period = 0; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *degrees) { DEVICE(device); (void)sensor; *degrees = g->temperature; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) { DEVICE(device); *milliwatts = g->power; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t type, unsigned int *degrees)
{
	DEVICE(device);
	*degrees = type == NVML_TEMPERATURE_THRESHOLD_SLOWDOWN ? g->slowdown : type == NVML_TEMPERATURE_THRESHOLD_SHUTDOWN ? g->shutdown : 0;
	return *degrees ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, nvmlMarginTemperature_t *margin)
{
	DEVICE(device);
	if (margin->version != nvmlMarginTemperature_v1)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	margin->marginTemperature = g->margin;
	return g->margin ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons)
{
	DEVICE(device);
	*reasons = nvmlClocksEventReasonSwThermalSlowdown | (g->throttled ? nvmlClocksThrottleReasonHwThermalSlowdown : 0);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) { return nvmlDeviceGetCurrentClocksEventReasons(device, reasons); }

nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, nvmlEnableState_t *pending)
{
	DEVICE(device);
	*pending = g->retire_pending ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
	return NVML_SUCCESS;
}

static nvmlReturn_t processes(int gpu, char kind, unsigned int *count, nvmlProcessInfo_t *infos)
{
	unsigned int found = 0;
	for (int i = 0; i < w.processes; i++) {
		if (w.process[i].gpu != gpu || w.process[i].kind != kind)
			continue;
		if (found < *count)
			infos[found] = (nvmlProcessInfo_t){
				.pid = w.process[i].pid,
				.usedGpuMemory = w.process[i].mb ? w.process[i].mb << 20 : (unsigned long long)NVML_VALUE_NOT_AVAILABLE,
				.gpuInstanceId = w.process[i].gi,
				.computeInstanceId = w.process[i].ci,
			};
		found++;
	}
	int small = found > *count;
	*count = found;
	return small ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) { DEVICE(device); (void)g; return processes(GPU(device), 'c', count, infos); }
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) { DEVICE(device); (void)g; return processes(GPU(device), 'g', count, infos); }
nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) { DEVICE(device); (void)g; return processes(GPU(device), 'm', count, infos); }

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples, unsigned int *count, unsigned long long since)
{
	DEVICE(device);
	unsigned int found = 0;
	if (g->mode)
		return NVML_ERROR_NOT_SUPPORTED;
	for (int i = 0; i < w.processes; i++) {
		if (w.process[i].gpu != GPU(device) || !(w.process[i].util | w.process[i].enc | w.process[i].dec))
			continue;
		if (samples && found < *count)
			samples[found] = (nvmlProcessUtilizationSample_t){.pid = w.process[i].pid, .timeStamp = since + 1, .smUtil = w.process[i].util, .encUtil = w.process[i].enc, .decUtil = w.process[i].dec};
		found++;
	}
	if (!found)
		return NVML_ERROR_NOT_FOUND;
	int small = !samples || found > *count;
	*count = found;
	return small ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceSetComputeMode(nvmlDevice_t device, nvmlComputeMode_t mode)
{
	DEVICE(device);
	note("compute_mode %s %d\n", g->uuid, mode);
	change();
	w.gpu[GPU(device)].compute_mode = mode;
	store(1);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode) { DEVICE(device); *mode = g->compute_mode; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceSetMemoryLimits_v1(nvmlDevice_t device, nvmlSetMemoryLimits_v1_t *limits)
{
	DEVICE(device);
	if (limits->softLimit > limits->hardLimit || (limits->hardLimit != NVML_DEVICE_MEMORY_LIMIT_MAX && limits->hardLimit > g->mb << 20))
		return NVML_ERROR_INVALID_ARGUMENT;
	note("memory_limits %s %s %llu %llu\n", g->uuid, limits->nameSpace, limits->softLimit, limits->hardLimit);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryLimits_v1(nvmlDevice_t device, nvmlGetMemoryLimits_v1_t *limits)
{
	DEVICE(device);
	(void)g;
	limits->softLimit = 0;
	limits->hardLimit = NVML_DEVICE_MEMORY_LIMIT_MAX;
	for (int i = 0; i < w.cgroups; i++)
		if (w.cgroup[i].gpu == GPU(device) && !strcmp(w.cgroup[i].path, limits->nameSpace)) {
			limits->currentUsed = w.cgroup[i].mb << 20;
			return NVML_SUCCESS;
		}
	return NVML_ERROR_OPERATING_SYSTEM; // it cannot be opened
}
