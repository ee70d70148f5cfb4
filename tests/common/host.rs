//! The Metal kernels, compiled by the system's C++ compiler and run here.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

use std::ffi::{CString, c_char, c_int, c_void};
use std::process::Command;
use std::sync::OnceLock;

/// What a compiled set of kernels is called through: name, buffers, bytes, grid and threads of a threadgroup (0 for a
/// grid without). It answers 0, or 1 where there is no such kernel, or 2 where its threads part at a barrier.
type Run = unsafe extern "C" fn(*const c_char, *mut *mut c_void, *const c_void, *const u32, u32) -> c_int;

/// Compiles `source` and gives what runs its kernels; once a process.
pub fn host(source: &str) -> Run {
    static RUN: OnceLock<Run> = OnceLock::new();
    *RUN.get_or_init(|| compile(source))
}

/// The names of the kernels of a source.
pub fn kernels(source: &str) -> Vec<String> {
    let plain = source.split("kernel void ").skip(1).map(|rest| rest.split('(').next().unwrap().to_owned());
    let blocks = source.lines().filter_map(|line| line.strip_prefix("BLOCKS("));
    let blocks = blocks.map(|rest| rest.split(',').next().unwrap().to_owned());
    plain.filter(|name| name != "name").chain(blocks).collect()
}

fn compile(source: &str) -> Run {
    let at = tempfile::tempdir().unwrap();
    let entries: String = kernels(source)
        .iter()
        .map(|name| {
            format!(
                "    if (!std::strcmp(name, \"{name}\")) return dispatch({name}, buffers, bytes, grid, lanes) ? 0 : 2;\n"
            )
        })
        .collect();
    let header = include_str!("host.h");
    let text = format!(
        "{header}\nnamespace kernels {{\n{source}\n}}\nusing namespace kernels;\nextern \"C\" int headroom_run(const \
         char* name, void** buffers, const void* bytes, const uint* grid, uint lanes) {{\n{entries}    return 1;\n}}\n"
    );
    let (cpp, library) = (at.path().join("kernels.cpp"), at.path().join("kernels.so"));
    std::fs::write(&cpp, text).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let out = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-w", "-o"])
        .args([&library, &cpp])
        .output()
        .unwrap_or_else(|e| panic!("the kernels are compiled by `{compiler}`, which does not start: {e}"));
    assert!(out.status.success(), "the kernels do not compile:\n{}", String::from_utf8_lossy(&out.stderr));
    let name = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the library was made above and has nothing that runs when it is opened. It stays for the whole process.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "{}", std::ffi::CStr::from_ptr(libc::dlerror()).to_string_lossy());
        let run = libc::dlsym(handle, c"headroom_run".as_ptr());
        assert!(!run.is_null());
        std::mem::transmute::<*mut c_void, Run>(run)
    }
}
