//! Room on a disk.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that this user may still write where a folder lies; `None` where the system does not tell.
pub(crate) fn free_on_disk(folder: &Path) -> Option<u64> {
    let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: `statvfs` is plain numbers, so zeros are a value of it; the call fills it in and keeps neither pointer.
    let about = unsafe {
        let mut about: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut about) == 0).then_some(about)
    }?;
    #[allow(clippy::unnecessary_cast)] // u32 on macOS
    Some(about.f_bavail as u64 * about.f_frsize as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_a_disk_is_known_and_that_of_nowhere_is_not() {
        assert!(free_on_disk(Path::new("/")).is_some_and(|free| free > 0));
        assert_eq!(free_on_disk(Path::new("/no/such/folder")), None);
    }
}
