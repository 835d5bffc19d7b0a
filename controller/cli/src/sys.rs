//! What the standard library doesn't ask the kernel.

use std::ffi::CStr;
use std::io;

/// The kernel's release, as `uname -r` has it.
///
/// # Errors
/// What the kernel said.
pub(crate) fn release() -> io::Result<String> {
    // SAFETY: every field of utsname is an array of characters, for which zero is a value.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a utsname that lives through the call, and nobody else has it.
    if unsafe { libc::uname(&raw mut name) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: uname ends each field with a zero, and `name` outlives the text that is copied out of it.
    let text = unsafe { CStr::from_ptr(name.release.as_ptr()) };
    Ok(text.to_string_lossy().into_owned())
}
