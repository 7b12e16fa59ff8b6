//! Keys and values of the maps.
