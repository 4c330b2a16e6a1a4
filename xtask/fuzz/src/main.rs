//! libFuzzer around one target, named by `NVSHARE_FUZZ_TARGET`: one program, so that they are built once.
#![cfg_attr(feature = "libfuzzer", no_main)]

use std::sync::OnceLock;

use nvshare_fuzz::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("NVSHARE_FUZZ_TARGET").unwrap_or_default();
        let target = nvshare_fuzz::named(&name)
            .unwrap_or_else(|| panic!("NVSHARE_FUZZ_TARGET is `{name}`: expected one of {}", nvshare_fuzz::names()));
        if let Some(directory) = std::env::var_os("NVSHARE_FUZZ_SEEDS") {
            for (number, seed) in (target.seeds)().into_iter().enumerate() {
                let path = std::path::Path::new(&directory).join(number.to_string());
                std::fs::write(&path, seed).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
            }
        }
        TARGET.get_or_init(|| target);
    },
    |bytes: &[u8]| {
        (TARGET.get().expect("set before the first input").knock)(bytes);
    }
);
