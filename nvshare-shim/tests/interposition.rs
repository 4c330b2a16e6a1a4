//! The shim under LD_PRELOAD in small C programs, in front of a driver that does nothing: whatever way a program takes,
//! it finds our hooks where they stand for what it would have found, and the driver's own functions everywhere else.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

mod programs;

struct Programs {
    directory: tempfile::TempDir,
}

impl Programs {
    fn new() -> Programs {
        let programs = Programs { directory: tempfile::tempdir().unwrap() };
        programs::compile_driver("driver.c", programs.directory.path());
        programs
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn compile(&self, source: &str, into: &str, arguments: &[&str]) -> PathBuf {
        let arguments: Vec<_> = arguments.iter().map(OsStr::new).collect();
        programs::compile(source, self.at(into), &arguments)
    }

    fn client(&self) -> PathBuf {
        self.compile("client.c", "client", &[])
    }

    /// Runs `program`, under the libraries `preload`; what it printed.
    fn run(&self, program: &Path, arguments: &[&str], preload: &[&Path]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .env("LD_LIBRARY_PATH", self.directory.path())
            .env(
                "LD_PRELOAD",
                preload.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":"),
            )
            .env("NVSHARE_SOCKET", self.at("nobody.sock"))
            .env("NVSHARE_LOG", "warn")
            .output()
            .unwrap();
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success(),
            "{} {arguments:?}: {}\n{said}{complained}",
            program.display(),
            output.status
        );
        said.into_owned()
    }
}

fn shim() -> PathBuf {
    let beside = std::env::current_exe().unwrap().parent().unwrap().join("libnvshare.so");
    assert!(beside.exists(), "{} is missing: build nvshare-shim", beside.display());
    beside
}

fn line<'a>(said: &'a str, start: &str) -> &'a str {
    said.lines()
        .find(|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("no line `{start}` in:\n{said}"))
}

#[test]
fn a_process_without_cuda_sees_nothing_of_the_shim() {
    let programs = Programs::new();
    let client = programs.client();
    let bare = programs.run(&client, &["idle"], &[]);
    assert_eq!(programs.run(&client, &["idle"], &[&shim()]), bare);
    assert!(bare.contains("global cuInit nothing") && bare.contains("threads 1"), "{bare}");
}

#[test]
fn dlsym_answers_with_hooks_for_hooked_names_only() {
    let programs = Programs::new();
    let said = programs.run(&programs.client(), &["dlsym"], &[&shim()]);
    for name in ["cuInit", "cuMemAlloc_v2", "cuLaunchKernel", "cuLaunchKernel_ptsz", "cuGetProcAddress_v2"] {
        assert_eq!(line(&said, &format!("{name} ")), format!("{name} libnvshare.so {name}"));
    }
    for name in ["cuDriverGetVersion", "cuStreamGetFlags"] {
        assert_eq!(line(&said, &format!("{name} ")), format!("{name} libcuda.so.1 {name}"));
    }
    // Hooked, but this driver does not have it; and nobody has libcuda in the global scope.
    assert_eq!(line(&said, "missing"), "missing nothing");
    assert_eq!(line(&said, "dlerror"), "dlerror names it");
    assert_eq!(line(&said, "global"), "global nothing");
}

#[test]
fn the_driver_chooses_the_variant_and_the_shim_only_its_hook() {
    let programs = Programs::new();
    let client = programs.client();
    let names = [
        "procaddress",
        "cuGetProcAddress",
        "cuMemAlloc",
        "cuMemFree",
        "cuMemAllocAsync",
        "cuMemcpyHtoD",
        "cuMemcpyDtoHAsync",
        "cuMemsetD8",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
        "cuGraphLaunch",
        "cuStreamSynchronize",
        "cuStreamGetFlags",
        "cuMemAdvise",
        "cuMemPrefetchAsync",
        "cuInit",
        "cuDriverGetVersion",
        "cuNoSuchThing",
    ];
    let bare = programs.run(&client, &names, &[]);
    let shimmed = programs.run(&client, &names, &[&shim()]);
    // The same variant of every name, with the same answer.
    assert_eq!(shimmed.replace("libnvshare.so", "libcuda.so.1"), bare);
    assert!(shimmed.contains("cuMemAlloc/0 rc 0 libnvshare.so cuMemAlloc_v2\n"), "{shimmed}");
    assert!(shimmed.contains("cuLaunchKernel/2 rc 0 libnvshare.so cuLaunchKernel_ptsz\n"), "{shimmed}");
    assert!(shimmed.contains("cuMemcpyHtoD/2 rc 0 libnvshare.so cuMemcpyHtoD_v2_ptds\n"), "{shimmed}");
    assert!(shimmed.contains("cuGetProcAddress/0 rc 0 libnvshare.so cuGetProcAddress_v2\n"), "{shimmed}");
    assert!(shimmed.contains("cuStreamGetFlags/2 rc 0 libcuda.so.1 cuStreamGetFlags_ptsz\n"), "{shimmed}");
    assert!(shimmed.contains("cuNoSuchThing/0 rc 500 nothing\n"), "{shimmed}");
}

#[test]
fn an_executable_linked_to_libcuda_calls_the_hooks() {
    let programs = Programs::new();
    let driver = programs.at("libcuda.so.1");
    let client = programs.compile("client.c", "linked", &["-DLINKED", driver.to_str().unwrap()]);
    let said = programs.run(&client, &["linked"], &[&shim()]);
    assert_eq!(line(&said, "cuMemAdvise"), "cuMemAdvise libnvshare.so cuMemAdvise");
    assert_eq!(line(&said, "cuDriverGetVersion"), "cuDriverGetVersion libcuda.so.1 cuDriverGetVersion");
    assert_eq!(line(&said, "advice"), "advice made 1 counted 1");
    assert_eq!(line(&said, "default"), "default libnvshare.so cuMemFree_v2");
    assert_eq!(line(&said, "next"), "next libnvshare.so cuMemFree_v2");
}

#[test]
fn weak_references_to_the_driver_are_null_without_one_and_hooks_with_one() {
    let programs = Programs::new();
    for kind in [&["-fPIE", "-pie"][..], &["-fPIC", "-Wl,-z,now,-z,relro"], &["-no-pie"]] {
        let arguments = [kind, &["-Wl,-z,dynamic-undefined-weak"]].concat();
        let weak = programs.compile("weak.c", "weak", &arguments);
        let bare = programs.run(&weak, &[], &[]);
        assert_eq!(line(&bare, "weak"), "weak none none none");
        assert_eq!(programs.run(&weak, &[], &[&shim()]), bare, "{kind:?}");
    }
    let driver = programs.at("libcuda.so.1");
    let arguments = ["-fPIE", "-pie", "-Wl,--no-as-needed", driver.to_str().unwrap()];
    let linked = programs.compile("weak.c", "weak_linked", &arguments);
    let said = programs.run(&linked, &[], &[&shim()]);
    assert_eq!(line(&said, "weak"), "weak there there there");
    assert_eq!(line(&said, "cuInit"), "cuInit 0");
}

#[test]
fn variables_named_like_driver_functions_are_their_librarys_own() {
    let programs = Programs::new();
    for how in [&["-Wl,-z,lazy"][..], &["-Wl,-z,now,-z,relro"]] {
        let flags = [&["-shared", "-fPIC"], how].concat();
        let library = programs.compile("pointers.c", "libfirst.so", &[&["-DLIBRARY"], &*flags].concat());
        let library = library.to_str().unwrap();
        let other = programs.compile("pointers.c", "libother.so", &[&["-DOTHER"], &*flags].concat());
        let linked = ["-Wl,--no-as-needed,--allow-shlib-undefined", other.to_str().unwrap(), library];
        // By a copy in the program, or not.
        for kind in [&["-fPIE", "-pie"][..], &["-fPIC"], &["-fno-pie", "-no-pie"], &["-fPIC", "-lcuda"]] {
            let driver = programs.directory.path().join("libcuda.so");
            std::fs::copy(programs.at("libcuda.so.1"), driver).unwrap();
            let search = format!("-L{}", programs.directory.path().display());
            let flags = [&linked[..], &[&search], kind, how].concat();
            let program = programs.compile("pointers.c", "program", &flags);
            let bare = programs.run(&program, &[], &[]);
            assert_eq!(bare, "before nothing\nfilled 0\ncalled 0 0\n");
            assert_eq!(programs.run(&program, &[], &[&shim()]), bare, "{how:?} {kind:?}");
        }
        let later = programs.compile("pointers.c", "later", &["-DLATER"]);
        let bare = programs.run(&later, &[library], &[]);
        assert_eq!(bare, "filled 0\nfilled 0\n");
        assert_eq!(programs.run(&later, &[library], &[&shim()]), bare, "{how:?}");
    }
}

#[test]
fn a_thread_that_is_cancelled_in_a_call_ends_and_its_program_goes_on() {
    let programs = Programs::new();
    let driver = programs.at("libcuda.so.1");
    let program = programs.compile("cancelled.c", "cancelled", &[driver.to_str().unwrap()]);
    let bare = programs.run(&program, &[], &[]);
    assert_eq!(bare, "cleaned up\ncancelled 1\nafterwards 0\n");
    assert_eq!(programs.run(&program, &[], &[&shim()]), bare);
}

#[test]
fn a_program_whose_main_thread_ended_ends_with_its_last_one() {
    let programs = Programs::new();
    let driver = programs.at("libcuda.so.1");
    let program = programs.compile("main_ends.c", "main_ends", &[driver.to_str().unwrap()]);
    let bare = programs.run(&program, &[], &[]);
    assert_eq!(bare, "began 0\nworked 0\n");
    assert_eq!(programs.run(&program, &[], &[&shim()]), bare);
}

#[test]
fn a_library_bound_deeply_to_libcuda_calls_the_hooks() {
    let programs = Programs::new();
    let driver = programs.at("libcuda.so.1");
    let plugin = programs.compile("plugin.c", "plugin.so", &["-shared", "-fPIC", driver.to_str().unwrap()]);
    let said = programs.run(&programs.client(), &["plugin", plugin.to_str().unwrap()], &[&shim()]);
    assert_eq!(line(&said, "plugin"), "plugin libnvshare.so cuLaunchKernel");
}

#[test]
fn a_plugin_bound_deeply_meets_its_own_names_as_bare() {
    let programs = Programs::new();
    let program = programs.compile("deep.c", "deep", &["-rdynamic"]);
    let plugin = programs.compile("deep.c", "plugin.so", &["-DPLUGIN", "-shared", "-fPIC"]);
    let text = programs.at("text.so");
    std::fs::write(&text, "no library").unwrap();
    let (plugin, text) = (plugin.to_str().unwrap(), text.to_str().unwrap());
    let paths = [plugin, text, "/no/such/file.so", "no-such-name.so", "/"];
    let bare = programs.run(&program, &paths, &[]);
    assert_eq!(line(&bare, "answer"), "answer 2");
    assert_eq!(programs.run(&program, &paths, &[&shim()]), bare);
}

#[test]
fn a_second_copy_of_the_driver_is_left_alone() {
    let programs = Programs::new();
    let other = programs.directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let copy = programs.compile("driver.c", "other/libcuda.so.1", &["-shared", "-fPIC"]);
    let said = programs.run(&programs.client(), &["twice", copy.to_str().unwrap()], &[&shim()]);
    assert_eq!(line(&said, "first"), "first libnvshare.so cuLaunchKernel");
    assert_eq!(line(&said, "second"), "second libcuda.so.1 cuLaunchKernel");
}

#[test]
fn another_interposer_works_before_and_behind_the_shim() {
    let programs = Programs::new();
    let client = programs.client();
    let other = programs.compile("preload.c", "preload.so", &["-shared", "-fPIC"]);
    for order in [[&*shim(), &*other], [&*other, &*shim()]] {
        let said = programs.run(&client, &["dlsym"], &order);
        assert_eq!(line(&said, "cuLaunchKernel "), "cuLaunchKernel libnvshare.so cuLaunchKernel");
        assert_eq!(line(&said, "preload"), "preload says 42, the next one answers");
    }
}

#[test]
fn a_driver_of_a_programs_own_has_all_its_calls() {
    let programs = Programs::new();
    let flags = ["-DDRIVER", "-shared", "-fPIC", "-Wl,-soname,libstandin.so,-Bsymbolic"];
    let stand_in = programs.compile("stand_in.c", "libstandin.so", &flags);
    let program = programs.compile("stand_in.c", "program", &[stand_in.to_str().unwrap()]);
    let bare = programs.run(&program, &[], &[]);
    assert_eq!(line(&bare, "cuInit"), "cuInit 42");
    assert_eq!(line(&bare, "default"), "default libstandin.so, 42");
    assert_eq!(line(&bare, "true"), "true libcuda.so.1, 0");
    assert_eq!(programs.run(&program, &[], &[&shim()]), bare);
}

#[test]
fn a_wrapper_of_libcuda_behind_the_shim_works_and_the_shim_too() {
    let programs = Programs::new();
    let flags = ["-DWRAPPER", "-shared", "-fPIC", "-Wl,-soname,libwrapper.so"];
    let wrapper = programs.compile("stand_in.c", "libwrapper.so", &flags);
    // A program that is linked to the wrapper only, ...
    let program = programs.compile("stand_in.c", "program", &[wrapper.to_str().unwrap()]);
    let bare = programs.run(&program, &[], &[]);
    assert_eq!(line(&bare, "wrapped"), "wrapped libcuda.so.1");
    let said = programs.run(&program, &[], &[&shim()]);
    for call in ["cuMemAdvise", "cuInit"] {
        assert_eq!(line(&said, call), line(&bare, call));
    }
    assert_eq!(line(&said, "true"), "true libnvshare.so, 0");
    // ... one that is linked to libcuda, and one that opens it: there the wrapper is preloaded as well.
    let driver = programs.at("libcuda.so.1");
    let linked = programs.compile("client.c", "linked", &["-DLINKED", driver.to_str().unwrap()]);
    for order in [[&*shim(), &*wrapper], [&*wrapper, &*shim()]] {
        let said = programs.run(&programs.client(), &["dlsym"], &order);
        assert_eq!(line(&said, "cuLaunchKernel "), "cuLaunchKernel libnvshare.so cuLaunchKernel");
    }
    let said = programs.run(&linked, &["linked"], &[&shim(), &wrapper]);
    assert_eq!(line(&said, "cuMemAdvise"), "cuMemAdvise libnvshare.so cuMemAdvise");
    assert_eq!(line(&said, "advice"), "advice made 1 counted 1");
}

#[test]
fn every_call_is_counted_before_it_is_made_and_a_forked_child_counts_for_itself() {
    let programs = Programs::new();
    let said = programs.run(&programs.client(), &["work"], &[&shim()]);
    assert_eq!(line(&said, "before init"), "before init 0");
    assert_eq!(line(&said, "threads started"), "threads started before init: 0");
    // One before cuInit, ten in threads, ten more in the destructors of their storage, a hundred at last.
    assert_eq!(line(&said, "launches"), "launches made 121 counted 121");
    assert_eq!(said.matches("late launch 0").count(), 10);
    assert_eq!(line(&said, "waits"), "waits made 1 counted 1");
    assert_eq!(line(&said, "child made"), "child made 126, the page says 121");
    assert_eq!(line(&said, "child 0"), "child 0, the page says 121");
}
