/* A stand-in for libnvidia-ml.so.1 with the functions, structures and statuses that the agent uses.
 *
 * What it answers is in the file that FAKE_NVML names, one word and numbers a line:
 *   init STATUS | hang | gpu UTILIZATION USED TOTAL CELSIUS ECC (-1: not supported) | lost | xid GPU NUMBER
 * It is read anew at every call. `hang` makes every call wait until it is gone; an xid is an event once for each change
 * of the file. Nothing here is taken from NVIDIA's header but what a binary interface needs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, TIMEOUT = 10, GPU_IS_LOST = 15 };
#define MAX_GPUS 8

typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct {
    void *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} event_t;

static struct { int lost; long long utilization, used, total, celsius, ecc; } gpus[MAX_GPUS];
static char devices[MAX_GPUS]; /* their addresses are the handles */
static int listening[MAX_GPUS];
static int init_status, count, hangs, xid_gpu, xid, xid_told;
static char event_set;

static void read_file(void)
{
    for (;;) {
        FILE *file = fopen(getenv("FAKE_NVML"), "r");
        char line[256];
        init_status = count = hangs = xid = 0;
        while (file && fgets(line, sizeof line, file)) {
            if (count < MAX_GPUS && !strncmp(line, "gpu ", 4)) {
                gpus[count].lost = 0;
                sscanf(line, "gpu %lld %lld %lld %lld %lld", &gpus[count].utilization, &gpus[count].used,
                       &gpus[count].total, &gpus[count].celsius, &gpus[count].ecc);
                count++;
            } else if (count < MAX_GPUS && !strncmp(line, "lost", 4)) {
                gpus[count++].lost = 1;
            } else if (!strncmp(line, "hang", 4)) {
                hangs = 1;
            }
            sscanf(line, "init %d", &init_status);
            sscanf(line, "xid %d %d", &xid_gpu, &xid);
        }
        if (file)
            fclose(file);
        if (!hangs)
            return;
        usleep(20000);
    }
}

static long index_of(void *device) { return (char *)device - devices; }

#define WITH(device, field)                                          \
    read_file();                                                     \
    long at = index_of(device);                                      \
    if (at < 0 || at >= count) return INVALID;                       \
    if (gpus[at].lost) return GPU_IS_LOST;                           \
    if (gpus[at].field < 0) return NOT_SUPPORTED

int nvmlInit_v2(void) { read_file(); return init_status; }

const char *nvmlErrorString(int status)
{
    return status == GPU_IS_LOST ? "GPU is lost" : status == 9 ? "Driver Not Loaded" : "Some Error";
}

int nvmlDeviceGetCount_v2(unsigned *found) { read_file(); *found = count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    read_file();
    if ((int)index >= count) return INVALID;
    *device = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length)
{
    WITH(device, total);
    snprintf(name, length, "NVIDIA Fake %ld", at);
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, utilization_t *rates)
{
    WITH(device, utilization);
    rates->gpu = gpus[at].utilization;
    rates->memory = 1;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory)
{
    WITH(device, used);
    memory->total = gpus[at].total;
    memory->used = gpus[at].used;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius)
{
    WITH(device, celsius);
    if (sensor != 0) return INVALID;
    *celsius = gpus[at].celsius;
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *errors)
{
    WITH(device, ecc);
    if (type != 1 || counter != 0) return INVALID; /* uncorrected, since the driver was loaded */
    *errors = gpus[at].ecc;
    return SUCCESS;
}

int nvmlEventSetCreate(void **set) { *set = &event_set; return SUCCESS; }

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set)
{
    if (set != &event_set || types != 8) return INVALID;
    listening[index_of(device)] = 1;
    return SUCCESS;
}

int nvmlEventSetWait_v2(void *set, event_t *event, unsigned milliseconds)
{
    if (set != &event_set) return INVALID;
    for (unsigned waited = 0; waited < milliseconds; waited += 20) {
        read_file();
        if (xid != xid_told) {
            xid_told = xid;
            if (xid && listening[xid_gpu]) {
                memset(event, 0, sizeof *event);
                event->device = &devices[xid_gpu];
                event->type = 8;
                event->data = xid;
                return SUCCESS;
            }
        }
        usleep(20000);
    }
    return TIMEOUT;
}
