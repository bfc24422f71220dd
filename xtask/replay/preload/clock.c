/*
 * A clock that a replay moves, for a server that knows no other than the machine's.
 *
 * Preloaded into memcached. The file named by REPLAY_CLOCK holds nanoseconds since the start of a
 * trace as eight bytes, little-endian; all clocks of the process stand at the moment of its start
 * plus that. Waits are cut to a millisecond, so that its timers notice.
 *
 *   cc -shared -fPIC -O2 -o clock.so clock.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define CLOCKS 16

static volatile int64_t *replayed;
static int64_t base[CLOCKS];

static int64_t real(clockid_t id)
{
	struct timespec t = { 0, 0 };

	syscall(SYS_clock_gettime, id, &t);
	return t.tv_sec * NS + t.tv_nsec;
}

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("REPLAY_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *map = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		_exit(71);
	close(fd);
	for (int id = 0; id < CLOCKS; id++)
		base[id] = real(id);
	replayed = map;
}

static int64_t moved(clockid_t id)
{
	int is_wall_or_monotonic = id == CLOCK_REALTIME || id == CLOCK_MONOTONIC ||
		id == CLOCK_REALTIME_COARSE || id == CLOCK_MONOTONIC_COARSE ||
		id == CLOCK_MONOTONIC_RAW || id == CLOCK_BOOTTIME;

	return is_wall_or_monotonic && replayed ? base[id] + *replayed : real(id);
}

int clock_gettime(clockid_t id, struct timespec *t)
{
	int64_t ns = moved(id);

	t->tv_sec = ns / NS;
	t->tv_nsec = ns % NS;
	return 0;
}

int gettimeofday(struct timeval *t, void *zone)
{
	int64_t ns = moved(CLOCK_REALTIME);

	(void)zone;
	t->tv_sec = ns / NS;
	t->tv_usec = ns % NS / 1000;
	return 0;
}

time_t time(time_t *t)
{
	time_t s = moved(CLOCK_REALTIME) / NS;

	if (t)
		*t = s;
	return s;
}

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout)
{
	return syscall(SYS_epoll_pwait, fd, events, most, timeout > 1 ? 1 : timeout, NULL, 8);
}
