//! `cargo xtask bench packet`: what the loaded program costs a packet, by `BPF_PROG_TEST_RUN`.
//!
//! Every figure is net of the same harness around a no-op, measured in turn with it. What the
//! program makes of a frame, and what it counts, is verified.

use anyhow::{Result, ensure};
use clap::Parser;
use lb_tests::bench::{
    claim::Judgement,
    one_processor,
    packet::{self, Selection},
    report::{Format, packet_table},
    scenario::Group,
};

#[derive(Parser)]
struct Cli {
    /// A table for people, or JSON for machines
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Fewer and shorter rounds, and fewer flows where they are recorded
    #[arg(long)]
    quick: bool,
    /// Only scenarios whose `NAME MODE FLOWS SLOTS` contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Only scenarios of this group
    #[arg(long, value_enum)]
    group: Option<Group>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    one_processor()?;
    let packet::Outcome {
        figures,
        judgements,
        watched,
    } = packet::run(Selection {
        quick: cli.quick,
        filter: &cli.filter,
        group: cli.group,
    })?;
    ensure!(
        !figures.is_empty(),
        "no scenario contains `{}`: `NAME MODE FLOWS SLOTS`, such as `tcp-v4 ipip 1000 moving`",
        cli.filter
    );
    println!("{}", cli.format.show(&figures, packet_table)?);
    if watched {
        eprintln!(
            "the kernel kept statistics of BPF programs meanwhile (`kernel.bpf_stats_enabled`, or another program's wish): no-ops are longer, and ratios smaller"
        );
    }
    for judgement in &judgements {
        eprintln!("{judgement}");
    }
    let fails = judgements.iter().any(Judgement::fails);
    ensure!(!fails, "costs are not as they are claimed to be");
    Ok(())
}
