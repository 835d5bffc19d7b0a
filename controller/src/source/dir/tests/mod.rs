//! Tests of the folder source.
