//! Checks of the crate's own rules: layers, circles, dead public items, purity, one clock, owned
//! tasks, form, names and words. Each rule has a test that breaks it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::format_push_string,
    missing_docs,
    unreachable_pub,
    reason = "a test ends at the first surprise"
)]

mod circles;
mod form;
mod items;
mod layers;
mod names;
mod paths;
mod purity;
mod source;
mod unused;
mod words;

use std::sync::OnceLock;

use source::Tree;

fn tree() -> &'static Tree {
    static TREE: OnceLock<Tree> = OnceLock::new();
    let tree = TREE.get_or_init(Tree::read);
    assert!(tree.src.len() > 100, "an empty tree breaks no rule");
    tree
}

fn holds(found: &[String]) {
    assert!(found.is_empty(), "broken in {} places:\n  {}", found.len(), found.join("\n  "));
}

#[test]
fn every_file_has_a_layer_and_imports_only_from_below() {
    holds(&layers::broken(tree(), layers::LAYERS));
    holds(&layers::without_files(tree(), layers::LAYERS));
}

#[test]
fn client_protocols_do_not_know_each_other() {
    holds(&layers::protocols_that_meet(tree()));
}

#[test]
fn lib_is_a_map() {
    holds(&layers::more_than_a_map(tree()));
}

#[test]
fn no_files_import_each_other() {
    holds(&circles::circles(tree()));
}

#[test]
fn every_public_item_is_used_by_the_program() {
    holds(&unused::unused(tree(), unused::FACE_FOR_TESTS));
}

#[test]
fn lower_layers_are_pure() {
    holds(&purity::impure(tree(), layers::LAYERS));
}

#[test]
fn one_file_reads_the_clock() {
    holds(&purity::other_clocks(tree()));
}

#[test]
fn tasks_have_owners_and_channels_have_bounds() {
    holds(&purity::detached(tree()));
    holds(&purity::exceptions_too_many(tree()));
}

#[test]
fn every_file_opens_with_a_sentence() {
    holds(&form::without_a_sentence(tree()));
}

#[test]
fn every_file_is_part_of_the_crate() {
    holds(&form::undeclared(tree()));
}

#[test]
fn files_and_functions_are_short() {
    holds(&form::too_long(tree()));
}

#[test]
fn nothing_is_left_unfinished() {
    holds(&form::unfinished(tree()));
}

#[test]
fn modules_are_of_like_size() {
    holds(&form::too_large(tree()));
    holds(&form::too_many_at_the_root(tree()));
}

#[test]
fn one_type_name_stands_for_one_type() {
    holds(&names::shared(tree()));
}

#[test]
fn names_and_prose_use_the_terms_of_the_field() {
    holds(&words::metaphors(tree(), &words::documents(), words::WORDS));
}
