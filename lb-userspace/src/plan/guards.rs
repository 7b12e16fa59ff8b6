//! The part of a plan that says which access lists are in the maps, and what guards each pool. Pure.
//!
//! A list has a number, by which its prefixes and the pools that have it are told. One whose prefixes change gets
//! another number: it is written aside, pools go over to it at the switch, and the former one goes after the grace
//! period, so that no packet meets half of each. A single prefix is changed in place, which is one store.

use std::collections::BTreeMap;

use lb_common::{
    memory::MemoryTables,
    tables::{Guard, Translation},
};

use super::{
    Draft, NoRoom,
    layout::{Layout, Placed},
};
use crate::{
    dataplane::Operation,
    model::{Access, Prefix, Rule, Rules, SOURCE_PREFIX_V4, SOURCE_PREFIX_V6, Service, State},
};

impl Draft {
    /// Has every list that some service has in the maps, and no other one.
    pub(super) fn place_lists(&mut self, state: &State) -> Result<(), NoRoom> {
        let names = state.services().filter_map(|s| s.access_list.as_deref());
        let lists = names.filter_map(|name| state.access_list(name).ok());
        let wanted: BTreeMap<&str, &Rules> =
            lists.map(|list| (list.name(), list.rules())).collect();
        let before = std::mem::take(&mut self.layout.lists);
        let former = std::mem::take(&mut self.layout.list_numbers);
        let mut new = Vec::new();
        for (&name, &rules) in &wanted {
            let number = former.get(name).copied();
            let same = number.filter(|number| {
                let had = before.get(number);
                had.is_some_and(|had| self.change_in_place(*number, had, rules))
            });
            match same {
                Some(number) => self.keep_list(name, number, rules),
                None => new.push((name, rules)),
            }
        }
        for (name, rules) in new {
            let taken = |number| self.layout.lists.contains_key(number);
            // One of a former agent's.
            let same = before
                .iter()
                .find(|(number, had)| !taken(number) && *had == rules);
            let number = same.map(|(&number, _)| number);
            let number = match number {
                Some(number) => number,
                None => {
                    self.take_prefixes(rules.len())?;
                    let free = self.new_list();
                    self.before.push(Operation::Access(free, rules.clone()));
                    free
                }
            };
            self.keep_list(name, number, rules);
        }
        for (number, rules) in before {
            if !self.layout.lists.contains_key(&number) {
                self.after.push(Operation::ForgetAccess(number, rules));
            }
        }
        Ok(())
    }

    /// Room for a new list of so many prefixes beside all others.
    pub(super) fn take_prefixes(&mut self, count: usize) -> Result<(), NoRoom> {
        self.prefixes += count;
        let (needed, room) = (self.prefixes, self.layout.capacity.access_prefixes);
        if needed > room as usize {
            return Err(NoRoom {
                what: format!(
                    "{needed} prefixes of access lists and source routes, those of lists that are being replaced included ({room} fit)"
                ),
                setting: "access_prefixes",
            });
        }
        Ok(())
    }

    /// The number of a new list, which neither is nor was another's.
    pub(super) fn new_list(&mut self) -> u32 {
        // 0 stands for none.
        let mut numbers = 1..;
        let free = numbers.find(|number| !self.list_numbers.contains(number));
        let free = free.unwrap_or(u32::MAX);
        self.list_numbers.insert(free);
        free
    }

    fn keep_list(&mut self, name: &str, number: u32, rules: &Rules) {
        self.layout.lists.insert(number, rules.clone());
        self.layout.list_numbers.insert(name.to_owned(), number);
    }

    /// Makes one list of another where that takes one store at most; else does nothing.
    fn change_in_place(&mut self, number: u32, had: &Rules, wanted: &Rules) -> bool {
        match difference(had, wanted) {
            Difference::None => {}
            Difference::Gone(rule) => {
                let rule = Rules::new(vec![rule]);
                self.after.push(Operation::ForgetAccess(number, rule));
            }
            Difference::New(rule) => {
                let rule = Rules::new(vec![rule]);
                self.before.push(Operation::Access(number, rule));
            }
            Difference::More => return false,
        }
        true
    }

    /// What guards the services of a pool, of which one speaks for all.
    pub(super) fn guard(&self, state: &State, service: &Service, placed: &Placed) -> Guard {
        let translation: Translation = self.translation(state, service);
        let unguarded = Guard {
            routes: placed.routes.number(),
            previous_routes: placed.previous_routes.number(),
            unproxied: service.syn_proxy.unproxied(),
            translation,
            ..Guard::default()
        };
        if !service.is_guarded() {
            return unguarded;
        }
        let list = service.access_list.as_ref();
        let list = list.and_then(|name| self.layout.list_numbers.get(name));
        let [v4, v6] = [
            service.source_prefix_v4.unwrap_or(SOURCE_PREFIX_V4),
            service.source_prefix_v6.unwrap_or(SOURCE_PREFIX_V6),
        ];
        Guard {
            list: list.copied().unwrap_or(0),
            source_bits_v4: 96 + u16::from(v4),
            source_bits_v6: v6.into(),
            flows: service.flow_limit.number(),
            sources: service.source_limit.number(),
            ..unguarded
        }
    }
}

/// What makes one list of another.
#[derive(Debug, PartialEq, Eq)]
enum Difference {
    /// Nothing.
    None,
    /// One prefix that goes.
    Gone(Rule),
    /// One that comes, or changes sides.
    New(Rule),
    /// More than that.
    More,
}

fn difference(had: &Rules, wanted: &Rules) -> Difference {
    if Rules::ptr_eq(had, wanted) {
        return Difference::None;
    }
    let same = had
        .iter()
        .zip(wanted.iter())
        .take_while(|(a, b)| a == b)
        .count();
    let (_, had) = had.split_at(same);
    let (_, wanted) = wanted.split_at(same);
    match (had, wanted) {
        ([], []) => Difference::None,
        ([old, had @ ..], [new, wanted @ ..]) if old.0 == new.0 && had == wanted => {
            Difference::New(*new)
        }
        ([old, had @ ..], _) if had == wanted => Difference::Gone(*old),
        (_, [new, wanted @ ..]) if had == wanted => Difference::New(*new),
        _ => Difference::More,
    }
}

impl Layout {
    /// The lists that the maps hold, those of routes included, whole or not.
    pub(super) fn adopt_lists(&mut self, tables: &MemoryTables) {
        let mut lists: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
        for (key, &says) in &tables.access {
            let rule = (Prefix::of_key(key), Access::of(says));
            lists.entry(key.list).or_default().push(rule);
        }
        let lists = lists.into_iter().map(|(number, mut rules)| {
            rules.sort_unstable();
            (number, Rules::new(rules))
        });
        let routes = |(_, rules): &(u32, Rules)| {
            let mut rules = rules.iter();
            rules.any(|(_, says)| matches!(says, Access::Subset(_)))
        };
        let (routes, lists) = lists.partition(routes);
        (self.route_lists, self.lists) = (routes, lists);
    }

    /// The operations that leave nothing of a guard but what pools have, in both halves.
    pub(super) fn guard_repairs(&self, tables: &MemoryTables, in_force: usize) -> Vec<Operation> {
        let mut repairs = Vec::new();
        for (number, entry) in (0u32..).zip(&tables.guards) {
            let wanted = self
                .pools
                .get(&number)
                .map(|placed| placed.guard)
                .unwrap_or_default();
            for half in [1 - in_force, in_force] {
                if entry.halves.get(half) != Some(&wanted) {
                    repairs.push(Operation::Guard(number, half, wanted));
                }
            }
        }
        repairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Rules {
        let rule = |text: &&str| {
            let (sign, prefix) = text.split_at(1);
            let access = if sign == "+" {
                Access::Allow
            } else {
                Access::Deny
            };
            (prefix.parse().unwrap(), access)
        };
        Rules::new(texts.iter().map(rule).collect())
    }

    #[test]
    fn only_what_takes_one_store_is_done_in_place() {
        let had = rules(&["+10.0.0.0/8", "-10.1.0.0/16", "+10.2.0.0/16"]);
        let rule = |text| rules(&[text])[0];
        for (wanted, expected) in [
            (
                &["+10.0.0.0/8", "-10.1.0.0/16", "+10.2.0.0/16"][..],
                Difference::None,
            ),
            (
                &["+10.0.0.0/8", "+10.2.0.0/16"],
                Difference::Gone(rule("-10.1.0.0/16")),
            ),
            (
                &["+10.0.0.0/8", "-10.1.0.0/16"],
                Difference::Gone(rule("+10.2.0.0/16")),
            ),
            (
                &["+10.0.0.0/8", "+10.1.0.0/16", "+10.2.0.0/16"],
                Difference::New(rule("+10.1.0.0/16")),
            ),
            (
                &[
                    "+10.0.0.0/8",
                    "-10.1.0.0/16",
                    "-10.1.1.0/24",
                    "+10.2.0.0/16",
                ],
                Difference::New(rule("-10.1.1.0/24")),
            ),
            (
                &[
                    "+10.0.0.0/8",
                    "-10.1.0.0/16",
                    "+10.2.0.0/16",
                    "+10.3.0.0/16",
                ],
                Difference::New(rule("+10.3.0.0/16")),
            ),
            (&["+10.0.0.0/8"], Difference::More),
            (&["+10.0.0.0/8", "+10.1.0.0/16"], Difference::More),
            (
                &["+10.0.0.0/8", "-10.3.0.0/16", "+10.2.0.0/16"],
                Difference::More,
            ),
        ] {
            assert_eq!(difference(&had, &rules(wanted)), expected, "{wanted:?}");
        }
    }
}
