//! What this program asks of the C library itself. The only unsafe code outside the listeners' own `sys`.

use std::time::Duration;

/// Keeps the allocator from holding on to memory: two arenas instead of eight per core, and what is freed at the end of
/// the heap goes back at once. Call it before the first thread starts.
pub(crate) fn frugal_allocator() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_TRIM_THRESHOLD, 128 << 10), (libc::M_MMAP_THRESHOLD, 256 << 10)]
    {
        // SAFETY: takes two numbers; a value it doesn't like is ignored.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// CPU time that the calling thread has used.
pub(crate) fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; a thread's own clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Has the calling thread stand back behind others that want the core: it gets a seventieth of an ordinary thread's share
/// (sched(7)), and so gets on all the same.
pub(crate) fn lower_priority() {
    const LOWEST: libc::c_int = 19;
    const THIS_THREAD: libc::id_t = 0; // Linux keeps it for each thread: sched(7)
    // SAFETY: takes three numbers; where it isn't allowed nothing changes.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, THIS_THREAD, LOWEST) };
}
