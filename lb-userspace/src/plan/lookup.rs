//! The look-up table of services: which bucket leads to which. Pure bookkeeping.

use lb_common::{
    hash,
    tables::{Bucket, Control, Endpoint, HASH_KEY_WORDS},
};

use crate::dataplane::Operation;

/// Buckets for each service that fits the maps, as a power of two: with two buckets of four places to
/// choose from and one service to two buckets, both being full is out of the question.
pub const BUCKETS_PER_SERVICE: u32 = 2;

/// What the look-up table holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    key: [u64; HASH_KEY_WORDS],
    bits: u32,
    buckets: Vec<Bucket>,
}

/// Where a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    bucket: u32,
    place: usize,
}

impl Lookup {
    /// The table as it is; buckets that are missing are empty.
    pub fn new(control: &Control, mut buckets: Vec<Bucket>) -> Self {
        buckets.resize(1 << control.lookup_bits, Bucket::default());
        Self {
            key: control.hash_key,
            bits: control.lookup_bits,
            buckets,
        }
    }

    /// Puts a service where its endpoint leads; nothing where it stands there already.
    ///
    /// # Errors
    /// Both buckets are full.
    pub fn link(&mut self, endpoint: &Endpoint, index: u32) -> Result<Option<Operation>, Full> {
        if self.find(endpoint, index + 1).is_some() {
            return Ok(None);
        }
        let place = self.find(endpoint, 0).ok_or(Full)?;
        Ok(Some(self.set(place, index + 1)))
    }

    /// Takes a service out.
    pub fn unlink(&mut self, endpoint: &Endpoint, index: u32) -> Option<Operation> {
        let place = self.find(endpoint, index + 1)?;
        Some(self.set(place, 0))
    }

    fn set(&mut self, Place { bucket, place }: Place, value: u32) -> Operation {
        self.buckets[bucket as usize][place] = value;
        Operation::Lookup {
            bucket,
            place,
            value,
        }
    }

    fn find(&self, endpoint: &Endpoint, value: u32) -> Option<Place> {
        let hash = hash::endpoint(&self.key, endpoint);
        (0..2).find_map(|choice| {
            let bucket = hash.bucket(self.bits, choice);
            let places = self.buckets.get(bucket as usize)?;
            let place = places.iter().position(|&at| at == value)?;
            Some(Place { bucket, place })
        })
    }

    /// The places whose services do not exist, emptied.
    pub fn retain(&mut self, mut exists: impl FnMut(u32) -> bool) -> Vec<Operation> {
        let mut operations = Vec::new();
        for bucket in 0..self.buckets.len() as u32 {
            for place in 0..Bucket::default().len() {
                let value = self.buckets[bucket as usize][place];
                if value != 0 && !exists(value - 1) {
                    operations.push(self.set(Place { bucket, place }, 0));
                }
            }
        }
        operations
    }
}

/// Both buckets of an endpoint are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::{model::Protocol, plan::endpoint_at};

    fn table(bits: u32) -> Lookup {
        let control = Control {
            hash_key: std::array::from_fn(|word| {
                0x9e37_79b9_7f4a_7c15_u64.rotate_left(word as u32)
            }),
            lookup_bits: bits,
            ..Control::default()
        };
        Lookup::new(&control, Vec::new())
    }

    fn service(n: u32) -> Endpoint {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
        endpoint_at(SocketAddr::from((address, 80)), Protocol::Tcp)
    }

    #[test]
    fn neighbouring_services_fit_whatever_the_key() {
        for seed in 1..200u64 {
            let control = Control {
                hash_key: std::array::from_fn(|word| {
                    (seed << 8 | word as u64).wrapping_mul(0xd134_2543_de82_ef95)
                }),
                lookup_bits: 11,
                ..Control::default()
            };
            let mut table = Lookup::new(&control, Vec::new());
            for n in 0..1_000 {
                assert!(table.link(&service(n), n).is_ok(), "{n} of key {seed}");
            }
        }
    }

    #[test]
    fn as_many_services_fit_as_there_are_half_as_many_buckets() {
        let mut table = table(13);
        for n in 0..4_096 {
            assert!(matches!(table.link(&service(n), n), Ok(Some(_))), "{n}");
        }
    }

    #[test]
    fn a_service_is_linked_once_and_leaves_its_place_to_others() {
        let mut table = table(0);
        for n in 0..4 {
            assert!(matches!(table.link(&service(n), n), Ok(Some(_))));
        }
        assert_eq!(table.link(&service(0), 0), Ok(None));
        assert_eq!(table.link(&service(4), 4), Err(Full));
        let freed = table.unlink(&service(2), 2);
        assert_eq!(
            freed,
            Some(Operation::Lookup {
                bucket: 0,
                place: 2,
                value: 0
            })
        );
        assert_eq!(table.unlink(&service(2), 2), None);
        assert!(matches!(table.link(&service(4), 4), Ok(Some(_))));
    }

    #[test]
    fn places_of_services_that_do_not_exist_are_emptied() {
        let mut table = table(0);
        for n in 0..3 {
            table.link(&service(n), n).unwrap();
        }
        assert_eq!(table.retain(|index| index == 1).len(), 2);
        assert_eq!(table.find(&service(0), 1), None);
        assert!(table.find(&service(1), 2).is_some());
    }
}
