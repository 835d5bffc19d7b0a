//! What this program asks of the C library itself. The only unsafe code outside the listeners' own `sys`.

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

/// Has the calling thread run only when nothing else wants the core.
pub(crate) fn lower_priority() {
    const LOWEST: libc::c_int = 19;
    const THIS_THREAD: libc::id_t = 0; // Linux keeps it for each thread: sched(7)
    // SAFETY: takes three numbers; where it isn't allowed nothing changes.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, THIS_THREAD, LOWEST) };
}
