//! A libcuda of the test's own: every observed function, beginning as NVIDIA's do, doing next to nothing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use nvshare_common::probe::PROBES;
use tempfile::TempDir;

/// What an allocation gives out.
pub(crate) const ADDRESS: u64 = 0x7000_0000_0000;

/// A directory with a `libcuda.so.1` in it.
pub(crate) struct Fake {
    directory: TempDir,
}

impl Fake {
    /// With every function.
    pub(crate) fn new() -> Fake {
        Fake::with(|_| true)
    }

    /// With functions that call others: `cuMemCreate` allocates by `cuMemAlloc_v2` on its way.
    pub(crate) fn nested() -> Fake {
        Fake::of(|name| ["cuMemCreate", "cuMemAlloc_v2"].contains(&name), true)
    }

    /// With some of the functions.
    pub(crate) fn with(which: impl Fn(&str) -> bool) -> Fake {
        Fake::of(which, false)
    }

    fn of(which: impl Fn(&str) -> bool, nested: bool) -> Fake {
        let directory = TempDir::with_prefix("nvshare-fake-").unwrap();
        let source = directory.path().join("fake.s");
        std::fs::write(&source, assembly(which, nested, unlike_others())).unwrap();
        let fake = Fake { directory };
        let done = Command::new("cc")
            .args(["-shared", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-o"])
            .arg(fake.path())
            .arg(source)
            .status()
            .expect("a C compiler, as Rust needs one to link");
        assert!(done.success(), "cc: {done}");
        fake
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("libcuda.so.1")
    }

    /// The same bytes in another file.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        let copy = self.directory.path().join(name);
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(self.path(), copy.join("libcuda.so.1")).unwrap();
        copy.join("libcuda.so.1")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Bytes before the first function. Observers of other tests put their probes into our files as well, and what looks like
/// one of theirs and has all its probes would be taken for it: so no two are alike.
pub(crate) fn unlike_others() -> usize {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    16 * (MADE.fetch_add(1, Ordering::Relaxed) + 257 * (std::process::id() as usize % 256))
}

/// Each exported function passes its arguments on to one that does the work, as NVIDIA's do: by a jump (up to 555) or
/// out of a frame by a call (580), through a pointer that the loader fills.
fn assembly(which: impl Fn(&str) -> bool, nested: bool, before: usize) -> String {
    let mut text = format!(".text\n.skip {before}\n");
    for (number, probe) in PROBES.iter().filter(|probe| which(probe.symbol)).enumerate() {
        let name = probe.symbol;
        // Allocations write through their first argument; `cuMemAllocPitch` a pitch of 512 through the second.
        let out = if probe.returns {
            format!("movabs ${ADDRESS}, %rax\n  test %rdi, %rdi\n  je 3f\n  movq %rax, (%rdi)\n3:\n")
        } else {
            String::new()
        };
        let inner = if nested && name == "cuMemCreate" {
            "push %rdi\n  push %rsi\n  push %rdx\n  push %rdx\n  call cuMemAlloc_v2@PLT\n  \
             pop %rdx\n  pop %rdx\n  pop %rsi\n  pop %rdi\n"
        } else {
            ""
        };
        let pitch = if name == "cuMemAllocPitch_v2" { "movq $512, (%rsi)\n" } else { "" };
        let (enter, pass, leave) = if number % 2 == 0 || name.starts_with("cuLaunch") {
            ("", "jmp *work_{name}(%rip)", "")
        } else {
            (
                "push %rbp\n  mov %rsp, %rbp\n  push %r12\n  sub $8, %rsp",
                "call *work_{name}(%rip)\n  mov %eax, %r12d\n  mov %r12d, %eax\n  mov -8(%rbp), %r12\n  leave\n  ret",
                "mov -8(%rbp), %r12\n  leave",
            )
        };
        let pass = pass.replace("{name}", name);
        writeln!(
            text,
            ".globl {name}\n.type {name}, @function\n.p2align 4\n{name}:\n  {enter}\n  \
             cmpl $0x321cba00, flag(%rip)\n  je 2f\n  {pass}\n\
             2:\n  movl $4, %eax\n  {leave}\n  ret\n.size {name}, .-{name}\n\
             .p2align 4\n1:\n  push %rbp\n  {inner}  {out}  {pitch}  xorl %eax, %eax\n  pop %rbp\n  ret\n\
             .data\n.p2align 3\nwork_{name}: .quad 1b\n.text"
        )
        .unwrap();
    }
    text + ".data\n.p2align 2\nflag: .long 0\n.section .note.GNU-stack,\"\",@progbits\n"
}
