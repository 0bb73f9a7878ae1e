"""A wall clock that jumps, for a process and all that it starts: a library in C that is loaded before all others and adds seconds to CLOCK_REALTIME.

The seconds are a number in a file that all processes have in their memory; CLOCK_MONOTONIC is left alone, as it is when a time server corrects a machine's clock.
libfaketime 0.9.10 (Debian 12) is not used: with it, Python's time.sleep, which is clock_nanosleep until a moment of CLOCK_MONOTONIC, fails with EINVAL.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

__all__ = ["WallClock", "compiler"]

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *shift;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("ACTLET_WALL_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  void *page = file < 0 ? MAP_FAILED : mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
  if (page != MAP_FAILED) shift = page;
  if (file >= 0) close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real ? real(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
  if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec fine;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &fine);
  now->tv_sec = fine.tv_sec;
  now->tv_usec = fine.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *now) {
  struct timespec fine;
  clock_gettime(CLOCK_REALTIME, &fine);
  if (now) *now = fine.tv_sec;
  return fine.tv_sec;
}
"""
_SHIFT = struct.Struct("<q")


def compiler() -> str | None:
    """A C compiler, None if there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class WallClock:
    """The library, and the file with the seconds.

    Args:
        folder: Where both are kept.

    Raises:
        subprocess.CalledProcessError: The compiler refuses it.
    """

    def __init__(self, folder: Path) -> None:
        source, self._library, self.file = folder / "wall_clock.c", folder / "wall_clock.so", folder / "seconds"
        source.write_text(_SOURCE, encoding="ascii")
        subprocess.run([str(compiler()), "-O1", "-shared", "-fPIC", "-o", str(self._library), str(source), "-ldl"], check=True)
        self.file.write_bytes(_SHIFT.pack(0))

    @property
    def environment(self) -> dict[str, str]:
        """Of a process whose clock it is."""
        return {"LD_PRELOAD": str(self._library), "ACTLET_WALL_CLOCK": str(self.file)}

    @staticmethod
    def set(file: str | Path, seconds: int) -> None:
        """Let it be so far from the right time."""
        with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), _SHIFT.size) as page:
            _SHIFT.pack_into(page, 0, seconds)
