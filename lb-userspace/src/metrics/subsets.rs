//! What is told of subsets and source routes.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::{Scrape, gauges, service_labels};
use crate::snapshot::SubsetStatus;

impl Scrape {
    pub(super) fn subsets(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Gauge = (&'static str, &'static str, fn(&SubsetStatus) -> usize);
        let figures: [Gauge; 3] = [
            (
                "lb_subset_prefixes",
                "Prefixes whose clients go to a subset of the backends",
                |subset| subset.prefixes,
            ),
            ("lb_subset_backends", "Backends of a subset", |subset| {
                subset.backends
            }),
            (
                "lb_subset_backends_up",
                "Backends of a subset that do not fail their checks",
                |subset| subset.up,
            ),
        ];
        let all: Vec<_> = self
            .pools()
            .flat_map(|service| {
                let subsets = service.subsets().into_iter();
                subsets.map(move |subset| {
                    let [service] = service_labels(service);
                    ([service, ("subset", subset.name.clone())], subset)
                })
            })
            .collect();
        for (name, help, read) in figures {
            let samples = all.iter();
            let samples = samples.map(|(labels, subset)| (labels.clone(), read(subset) as u64));
            gauges(encoder, name, help, None, samples)?;
        }
        Ok(())
    }
}
