//! A program with the CUDA runtime linked statically, on NVIDIA's own driver libraries: with the shim preloaded it gets,
//! for every name it asks for, either our hook of exactly the variant the driver chose or the driver's own address; and
//! without a GPU it fails as the bare program does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use nvshare_testbed::{Artifacts, nvidia_libraries, static_cudart};
use tempfile::TempDir;

/// A question: how, name, version, flags.
type Question = (String, String, String, String);

/// What stands at the address that was given.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    result: String,
    object: String,
    symbol: String,
    /// From the symbol, in bytes.
    distance: String,
}

struct Programs {
    directory: TempDir,
}

impl Programs {
    fn build(runtime: &Path) -> Programs {
        let programs = Programs { directory: TempDir::with_prefix("nvshare-cudart-").unwrap() };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/static_cudart");
        let cc = |arguments: &[&Path]| {
            let done =
                Command::new("cc").arg("-O1").args(arguments).args(["-ldl", "-lrt", "-lpthread"]).output();
            let done = done.expect("a C compiler, as Rust needs one to link");
            assert!(done.status.success(), "cc: {}", String::from_utf8_lossy(&done.stderr));
        };
        cc(&["-o".as_ref(), &programs.program(), &source.join("program.c"), runtime]);
        cc(&["-shared".as_ref(), "-fPIC".as_ref(), "-o".as_ref(), &programs.spy(), &source.join("spy.c")]);
        programs
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("program")
    }

    fn spy(&self) -> PathBuf {
        self.directory.path().join("spy.so")
    }

    /// What the program printed and how it ended; with the spy, also what it asked and got.
    fn run(&self, driver: &Path, preload: &[PathBuf]) -> (String, BTreeMap<Question, Answer>) {
        let output = self.directory.path().join("asked");
        let _ = std::fs::remove_file(&output);
        let preload: Vec<&str> = preload.iter().map(|path| path.to_str().unwrap()).collect();
        let mut command = Command::new(self.program());
        command.env("LD_LIBRARY_PATH", driver).env("SPY_OUTPUT", &output);
        // Nobody to talk to.
        command.env("NVSHARE_SOCKET", self.directory.path().join("no.sock"));
        if !preload.is_empty() {
            command.env("LD_PRELOAD", preload.join(":"));
        }
        let done = command.output().unwrap();
        let said = format!(
            "{}{}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr),
            done.status
        );
        (said, std::fs::read_to_string(&output).map_or_else(|_| BTreeMap::new(), |text| parse(&text)))
    }
}

fn parse(text: &str) -> BTreeMap<Question, Answer> {
    text.lines()
        .map(|line| {
            let fields: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let [how, name, version, flags, result, object, symbol, distance] =
                fields.try_into().expect("eight fields");
            ((how, name, version, flags), Answer { result, object, symbol, distance })
        })
        .collect()
}

#[test]
fn a_static_runtime_gets_our_hook_of_the_drivers_variant_or_the_drivers_address() {
    let (Some(libraries), Some(runtime)) = (nvidia_libraries(), static_cudart()) else { return };
    let programs = Programs::build(&runtime);
    let shim = Artifacts::find().shim();
    for driver in libraries {
        let (bare, _) = programs.run(&driver.directory, &[]);
        let (with_shim, _) = programs.run(&driver.directory, std::slice::from_ref(&shim));
        assert_eq!(with_shim, bare, "{}: without a GPU it fails as the bare program does", driver.version);
        assert!(bare.contains("cudaError"), "{bare}");

        let (_, bare) = programs.run(&driver.directory, &[programs.spy()]);
        let (_, with_shim) = programs.run(&driver.directory, &[programs.spy(), shim.clone()]);
        let questions = |answers: &BTreeMap<Question, Answer>| answers.keys().cloned().collect::<Vec<_>>();
        assert_eq!(questions(&with_shim), questions(&bare), "{}: the same is asked", driver.version);
        assert!(bare.len() > 300, "{}: the runtime asked for {} names only", driver.version, bare.len());
        let mut hooked = 0;
        for (question, bare) in &bare {
            let answer = &with_shim[question];
            if answer.object == "libnvshare.so" {
                assert_eq!(bare.object, "libcuda.so.1", "{question:?}");
                let variant =
                    |answer: &Answer| (answer.result.clone(), answer.symbol.clone(), answer.distance.clone());
                assert_eq!(variant(answer), variant(bare), "{}: {question:?}", driver.version);
                hooked += 1;
            } else {
                assert_eq!(answer, bare, "{}: {question:?}", driver.version);
            }
        }
        // Launches, copies, allocations, with both kinds of default stream, are among them.
        assert!(hooked > 50, "{}: only {hooked} hooks were given out", driver.version);
        let given = |how: &str, name: &str| {
            with_shim.iter().any(|((_, asked, ..), answer)| {
                asked == name && answer.object == "libnvshare.so" && answer.symbol == how
            })
        };
        assert!(given("cuMemAlloc_v2", "'cuMemAlloc'") && given("cuLaunchKernel", "'cuLaunchKernel'"));
        eprintln!("NVIDIA's {}: {} questions, {hooked} answered with a hook", driver.version, bare.len());
    }
}
