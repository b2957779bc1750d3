// gpucheck uses a GPU through the libraries that a container was given, which
// it opens itself: without them it says which is missing.
//
//	gpucheck cuda     adds two vectors on each CUDA device and prints its UUID
//	gpucheck egl      prints the renderer of each EGL device
//	gpucheck vulkan   prints the name of each Vulkan device
//	gpucheck nvenc    opens an encoder session on each CUDA device
//	gpucheck nvml     prints the UUID of each device that NVML counts
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VK_NO_PROTOTYPES
#define EGL_EGLEXT_PROTOTYPES 0
#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <ffnvcodec/nvEncodeAPI.h>
#include <vulkan/vulkan.h>

static void *library(const char *name) {
	void *handle = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
	if (!handle) {
		fprintf(stderr, "gpucheck: %s\n", dlerror());
		exit(1);
	}
	return handle;
}

static void *symbol(void *handle, const char *name) {
	void *found = dlsym(handle, name);
	if (!found) {
		fprintf(stderr, "gpucheck: %s\n", dlerror());
		exit(1);
	}
	return found;
}

static void check(const char *what, long got, long want) {
	if (got != want) {
		fprintf(stderr, "gpucheck: %s: %ld\n", what, got);
		exit(1);
	}
}

// CUDA driver API, CUDA Toolkit Reference Manual.
typedef int CUdevice;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef unsigned long long CUdeviceptr;

// c[i] = a[i] + b[i], in PTX, which the driver compiles for whatever GPU it is.
static const char add[] =
	".version 6.0\n.target sm_50\n.address_size 64\n"
	".visible .entry add(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u32 pn)\n{\n"
	".reg .pred %p<2>;\n.reg .f32 %f<4>;\n.reg .b32 %r<6>;\n.reg .b64 %d<11>;\n"
	"ld.param.u64 %d1, [pa];\nld.param.u64 %d2, [pb];\nld.param.u64 %d3, [pc];\nld.param.u32 %r2, [pn];\n"
	"mov.u32 %r3, %ctaid.x;\nmov.u32 %r4, %ntid.x;\nmov.u32 %r5, %tid.x;\nmad.lo.s32 %r1, %r3, %r4, %r5;\n"
	"setp.ge.u32 %p1, %r1, %r2;\n@%p1 bra done;\n"
	"cvta.to.global.u64 %d4, %d1;\ncvta.to.global.u64 %d5, %d2;\ncvta.to.global.u64 %d6, %d3;\n"
	"mul.wide.u32 %d7, %r1, 4;\nadd.s64 %d8, %d4, %d7;\nadd.s64 %d9, %d5, %d7;\nadd.s64 %d10, %d6, %d7;\n"
	"ld.global.f32 %f1, [%d8];\nld.global.f32 %f2, [%d9];\nadd.f32 %f3, %f1, %f2;\nst.global.f32 [%d10], %f3;\n"
	"done:\nret;\n}\n";

enum { length = 1 << 16, block = 256 };

static void *cuda;

static int cudaDevices(void) {
	cuda = library("libcuda.so.1");
	int count = 0;
	check("cuInit", ((int (*)(unsigned))symbol(cuda, "cuInit"))(0), 0);
	check("cuDeviceGetCount", ((int (*)(int *))symbol(cuda, "cuDeviceGetCount"))(&count), 0);
	return count;
}

static CUcontext cudaContext(int index) {
	CUdevice device;
	CUcontext context;
	check("cuDeviceGet", ((int (*)(CUdevice *, int))symbol(cuda, "cuDeviceGet"))(&device, index), 0);
	check("cuCtxCreate", ((int (*)(CUcontext *, unsigned, CUdevice))symbol(cuda, "cuCtxCreate_v2"))(&context, 0, device), 0);
	return context;
}

static void cudaPrint(int index) {
	unsigned char uuid[16];
	check("cuDeviceGetUuid", ((int (*)(void *, CUdevice))symbol(cuda, "cuDeviceGetUuid"))(uuid, index), 0);
	printf("GPU-");
	for (int i = 0; i < 16; i++) printf("%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
	printf("\n");
}

static int checkCUDA(void) {
	static float a[length], b[length], c[length];
	int count = cudaDevices();
	int (*alloc)(CUdeviceptr *, size_t) = symbol(cuda, "cuMemAlloc_v2");
	int (*to)(CUdeviceptr, const void *, size_t) = symbol(cuda, "cuMemcpyHtoD_v2");
	int (*from)(void *, CUdeviceptr, size_t) = symbol(cuda, "cuMemcpyDtoH_v2");
	for (int i = 0; i < count; i++) {
		CUcontext context = cudaContext(i);
		CUmodule module;
		CUfunction function;
		CUdeviceptr da, db, dc;
		unsigned n = length;
		for (int k = 0; k < length; k++) a[k] = k, b[k] = 2 * k + i, c[k] = -1;
		check("cuModuleLoadData", ((int (*)(CUmodule *, const void *))symbol(cuda, "cuModuleLoadData"))(&module, add), 0);
		check("cuModuleGetFunction", ((int (*)(CUfunction *, CUmodule, const char *))symbol(cuda, "cuModuleGetFunction"))(&function, module, "add"), 0);
		check("cuMemAlloc", alloc(&da, sizeof a), 0);
		check("cuMemAlloc", alloc(&db, sizeof b), 0);
		check("cuMemAlloc", alloc(&dc, sizeof c), 0);
		check("cuMemcpyHtoD", to(da, a, sizeof a), 0);
		check("cuMemcpyHtoD", to(db, b, sizeof b), 0);
		void *arguments[] = {&da, &db, &dc, &n};
		check("cuLaunchKernel",
			((int (*)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **))symbol(cuda, "cuLaunchKernel"))(
				function, length / block, 1, 1, block, 1, 1, 0, NULL, arguments, NULL),
			0);
		check("cuMemcpyDtoH", from(c, dc, sizeof c), 0);
		for (int k = 0; k < length; k++) {
			if (c[k] != a[k] + b[k]) check("wrong sum at", k, -1);
		}
		cudaPrint(i);
		check("cuCtxDestroy", ((int (*)(CUcontext))symbol(cuda, "cuCtxDestroy_v2"))(context), 0);
	}
	return count > 0 ? 0 : 1;
}

static int checkNVENC(void) {
	void *encoder = library("libnvidia-encode.so.1");
	int count = cudaDevices();
	for (int i = 0; i < count; i++) {
		CUcontext context = cudaContext(i);
		NV_ENCODE_API_FUNCTION_LIST functions = {.version = NV_ENCODE_API_FUNCTION_LIST_VER};
		NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS parameters = {
			.version = NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS_VER, .device = context, .deviceType = NV_ENC_DEVICE_TYPE_CUDA, .apiVersion = NVENCAPI_VERSION};
		void *session = NULL;
		uint32_t codecs = 0;
		check("NvEncodeAPICreateInstance", ((int (*)(void *))symbol(encoder, "NvEncodeAPICreateInstance"))(&functions), 0);
		check("nvEncOpenEncodeSessionEx", functions.nvEncOpenEncodeSessionEx(&parameters, &session), 0);
		check("nvEncGetEncodeGUIDCount", functions.nvEncGetEncodeGUIDCount(session, &codecs), 0);
		printf("%u codecs\n", codecs);
		check("nvEncDestroyEncoder", functions.nvEncDestroyEncoder(session), 0);
	}
	return count > 0 ? 0 : 1;
}

static int checkEGL(void) {
	void *egl = library("libEGL.so.1");
	void *(*proc)(const char *) = symbol(egl, "eglGetProcAddress");
	PFNEGLQUERYDEVICESEXTPROC devicesOf = proc("eglQueryDevicesEXT");
	PFNEGLGETPLATFORMDISPLAYEXTPROC displayOf = proc("eglGetPlatformDisplayEXT");
	PFNEGLINITIALIZEPROC initialize = proc("eglInitialize");
	PFNEGLBINDAPIPROC bind = proc("eglBindAPI");
	PFNEGLCREATECONTEXTPROC create = proc("eglCreateContext");
	PFNEGLMAKECURRENTPROC make = proc("eglMakeCurrent");
	EGLDeviceEXT devices[32];
	EGLint count = 0;
	int usable = 0;
	if (!devicesOf || !displayOf) check("EGL_EXT_device_enumeration", 0, 1);
	check("eglQueryDevicesEXT", devicesOf(32, devices, &count), EGL_TRUE);
	for (int i = 0; i < count; i++) {
		EGLDisplay display = displayOf(EGL_PLATFORM_DEVICE_EXT, devices[i], NULL);
		if (display == EGL_NO_DISPLAY || !initialize(display, NULL, NULL) || !bind(EGL_OPENGL_API)) continue;
		EGLContext context = create(display, (EGLConfig)0, EGL_NO_CONTEXT, NULL); // EGL_KHR_no_config_context
		if (context == EGL_NO_CONTEXT || !make(display, EGL_NO_SURFACE, EGL_NO_SURFACE, context)) continue;
		const unsigned char *(*string)(unsigned) = proc("glGetString");
		printf("%s\n", string(0x1F01)); // GL_RENDERER
		usable++;
	}
	return usable > 0 ? 0 : 1;
}

static int checkVulkan(void) {
	void *vulkan = library("libvulkan.so.1");
	PFN_vkGetInstanceProcAddr proc = symbol(vulkan, "vkGetInstanceProcAddr");
	PFN_vkCreateInstance create = (PFN_vkCreateInstance)proc(NULL, "vkCreateInstance");
	VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_1};
	VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &application};
	VkInstance instance;
	VkPhysicalDevice devices[32];
	uint32_t count = 32;
	check("vkCreateInstance", create(&info, NULL, &instance), VK_SUCCESS);
	check("vkEnumeratePhysicalDevices", ((PFN_vkEnumeratePhysicalDevices)proc(instance, "vkEnumeratePhysicalDevices"))(instance, &count, devices), VK_SUCCESS);
	for (uint32_t i = 0; i < count; i++) {
		VkPhysicalDeviceProperties properties;
		((PFN_vkGetPhysicalDeviceProperties)proc(instance, "vkGetPhysicalDeviceProperties"))(devices[i], &properties);
		printf("%s\n", properties.deviceName);
	}
	return count > 0 ? 0 : 1;
}

static int checkNVML(void) {
	void *nvml = library("libnvidia-ml.so.1");
	unsigned count = 0;
	check("nvmlInit", ((int (*)(void))symbol(nvml, "nvmlInit_v2"))(), 0);
	check("nvmlDeviceGetCount", ((int (*)(unsigned *))symbol(nvml, "nvmlDeviceGetCount_v2"))(&count), 0);
	for (unsigned i = 0; i < count; i++) {
		void *device;
		char uuid[96];
		check("nvmlDeviceGetHandleByIndex", ((int (*)(unsigned, void **))symbol(nvml, "nvmlDeviceGetHandleByIndex_v2"))(i, &device), 0);
		check("nvmlDeviceGetUUID", ((int (*)(void *, char *, unsigned))symbol(nvml, "nvmlDeviceGetUUID"))(device, uuid, sizeof uuid), 0);
		printf("%s\n", uuid);
	}
	return count > 0 ? 0 : 1;
}

int main(int argc, char **argv) {
	const char *what = argc > 1 ? argv[1] : "";
	if (!strcmp(what, "cuda")) return checkCUDA();
	if (!strcmp(what, "egl")) return checkEGL();
	if (!strcmp(what, "vulkan")) return checkVulkan();
	if (!strcmp(what, "nvenc")) return checkNVENC();
	if (!strcmp(what, "nvml")) return checkNVML();
	fprintf(stderr, "usage: gpucheck cuda|egl|vulkan|nvenc|nvml\n");
	return 2;
}
