//! `cargo xtask run`: the playground. All of it is in [`lb_tests::playground`].

use anyhow::Result;
use clap::Parser as _;
use lb_tests::playground::{Options, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    run(Options::parse()).await
}
