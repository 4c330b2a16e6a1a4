//! An ordinary CUDA driver API program that fills, computes over and verifies N bytes. It knows nothing of nvshare.

mod gpu;
mod graph;
mod ipc;
mod link;
mod mapped;
mod options;
mod pattern;
mod pool;
mod report;
mod turns;
mod work;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

fn main() -> Result<ExitCode> {
    let options = options::Options::parse();
    if options.link {
        println!("{}", serde_json::to_string(&link::measure(options.device)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    if options.opener {
        ipc::serve(options.device)?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = work::run(&options)?;
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.data_errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
