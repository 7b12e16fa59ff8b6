//! `lbctl status`.

use std::collections::BTreeMap;

use lb_userspace::{
    api::{
        client::Client,
        dto::{AddressPool, AnnouncedVip, Device, Of, Status, TableUse, Worst},
    },
    model::name_of,
};

use crate::{args::Output, failure::Failure, output};

/// Shows the agent as a whole.
pub async fn show(client: &Client, output: Output) -> Result<String, Failure> {
    let status = client.status().await?;
    match output {
        Output::Json => output::json(&status),
        Output::Table => Ok(describe(&status)),
    }
}

fn describe(status: &Status) -> String {
    let interfaces = status.interfaces.iter();
    let interfaces: Vec<_> = interfaces
        .map(|i| format!("{} ({})", i.name, i.mode))
        .collect();
    let tally = &status.backends;
    let mut backends = format!("{} up, {} down", tally.up, tally.down);
    if tally.used_in_panic > 0 {
        backends += &format!(" ({} of them used in panic)", tally.used_in_panic);
    }
    if tally.starting > 0 {
        backends += &format!(", {} not checked yet", tally.starting);
    }
    let mut fields = vec![
        (
            "instance",
            format!("{} (lbd {})", status.instance, status.version),
        ),
        ("interfaces", or_none(&interfaces)),
        ("services", status.services.to_string()),
        ("backends", backends),
    ];
    if !status.panic.is_empty() {
        let services: Vec<String> = status.panic.iter().map(ToString::to_string).collect();
        fields.push(("in panic", services.join(", ")));
    }
    let worst = worst(&status.worst);
    if !worst.is_empty() {
        fields.push(("capacity", worst.join(", ")));
    }
    fields.push(("flow tables", flow_tables(status)));
    let pools = status.address_pools.iter();
    fields.extend(pools.map(|pool| ("address pool", address_pool(pool))));
    let announced = status.announced.iter();
    fields.extend(announced.map(|vip| ("announced", announced_vip(vip))));
    fields.extend(status.devices.iter().map(|at| ("device", device(at))));
    fields.extend([
        ("generation", status.generation.to_string()),
        ("unknown port", name_of(status.unknown_port)),
        ("drops", counts(&status.drops)),
        ("answers", counts(&status.answers)),
        ("fragments", counts(&status.fragments)),
    ]);
    output::fields(&fields)
}

/// A VLAN device or a bond, and what packets leave by.
fn device(device: &Device) -> String {
    let over = or_none(&device.over);
    match device.tags.as_slice() {
        [] => format!("{} (bond) over {over}", device.name),
        tags => format!("{} ({}) over {over}", device.name, tags.join(", ")),
    }
}

/// Who is worst off, by each figure that is known.
fn worst(worst: &Worst) -> Vec<String> {
    let Worst {
        utilisation,
        imbalance,
        headroom,
    } = worst;
    let used = |of: &Of| {
        format!(
            "at most {} used ({})",
            output::thousandths(of.value),
            of.service
        )
    };
    let uneven = |of: &Of| {
        format!(
            "imbalance up to {} ({})",
            output::ratio(of.value),
            of.service
        )
    };
    let left = |of: &Of| format!("headroom at least {} backends ({})", of.value, of.service);
    let figures = [
        utilisation.as_ref().map(used),
        imbalance.as_ref().map(uneven),
        headroom.as_ref().map(left),
    ];
    figures.into_iter().flatten().collect()
}

fn flow_tables(status: &Status) -> String {
    let tables = &status.flow_tables;
    let part = |table: &TableUse| {
        let percent = output::percent(table.entries, table.capacity);
        format!("{} of {} ({percent})", table.entries, table.capacity)
    };
    let (established, half_open) = (part(&tables.established), part(&tables.half_open));
    let mut text = format!("established {established}, half-open {half_open}");
    if !status.address_pools.is_empty() {
        text += &format!(", sessions {}", part(&tables.sessions));
    }
    text
}

fn address_pool(pool: &AddressPool) -> String {
    format!(
        "{}: {} addresses, ports {} to {} of each; {} sessions",
        pool.name, pool.addresses, pool.first_port, pool.last_port, pool.sessions
    )
}

fn announced_vip(announced: &AnnouncedVip) -> String {
    match announced.conflicts {
        0 => announced.vip.to_string(),
        frames => format!(
            "{} (claimed by others in {frames} frames: `lbctl events`)",
            announced.vip
        ),
    }
}

/// Those that are not zero.
fn counts(counts: &BTreeMap<String, u64>) -> String {
    let counts = counts.iter().filter(|(_, count)| **count > 0);
    let counts: Vec<_> = counts
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    or_none(&counts)
}

fn or_none(items: &[String]) -> String {
    match items {
        [] => "none".to_owned(),
        items => items.join(", "),
    }
}
