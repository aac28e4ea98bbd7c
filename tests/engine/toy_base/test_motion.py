"""Circling objects, and the measures of how near a video comes to one: on drawn films whose truth is known."""

import math
from dataclasses import replace

import torch
from torch.nn import functional as F

from engine.toy_base.films import FRAMES, render
from engine.toy_base.motion import LOST, RADIUS, TURNS, circle, circling, look, path_error, standing, turned

LOOKS = [("red", "ball"), ("yellow", "star"), ("purple", "ring"), ("orange", "box")]


def drawn():
    scene = circling(LOOKS, torch.Generator().manual_seed(1))
    return scene, *render(scene)


def test_a_circle_is_clockwise_round_a_middle_below_the_start_and_stays_in_the_picture():
    scene, film, places = drawn()
    assert torch.allclose((circle() - torch.tensor([0.0, RADIUS])).norm(dim=-1), torch.tensor(RADIUS))
    assert torch.allclose(places[:, -1] - places[:, 0], torch.tensor([0.0, 2 * RADIUS]), atol=1e-5)
    assert (places[:, 1, 0] > places[:, 0, 0]).all()  # to the right first
    assert ((turned(film, scene.colour_B, scene.start_B2) - TURNS).abs() < 0.02).all()
    whole = circling(LOOKS, torch.Generator().manual_seed(1), turns=1.0)
    film, places = render(whole)
    assert torch.allclose(places[:, 0], places[:, -1], atol=1e-5) and places.abs().max() < 0.65
    assert ((turned(film, whole.colour_B, whole.start_B2) - 1).abs() < 0.02).all()


def test_fewer_frames_go_round_as_fast():
    assert torch.equal(circle(9), circle()[:9])


def test_the_path_error_is_nothing_on_the_circle_and_the_mean_distance_off_it():
    scene, film, places = drawn()
    assert path_error(film, scene.colour_B, places).max() < 0.01
    still, _ = render(replace(scene, path_BT2=torch.zeros_like(scene.path_BT2)))
    chord = (
        2 * RADIUS * torch.sin(math.pi * TURNS * torch.arange(1, FRAMES) / (FRAMES - 1))
    )  # from the start to each place on the circle
    assert torch.allclose(path_error(still, scene.colour_B, places), (chord / 2).mean(), atol=0.01)


def test_a_vanished_object_counts_as_lost_and_not_as_standing_in_the_middle():
    scene, film, places = drawn()
    gone = film.clone()
    gone[:, :, 1:] = 0
    assert torch.equal(path_error(gone, scene.colour_B, places), torch.full((len(LOOKS),), LOST))


def test_the_look_is_good_whichever_way_an_object_takes_and_poor_when_it_is_blurred_or_of_another_shape():
    scene, film, _ = drawn()
    straight = standing(LOOKS, torch.Generator().manual_seed(2), "moves left")
    straight_film, _ = render(straight)
    assert look(film, scene).min() > 28 and look(straight_film, straight).min() > 28
    soft = F.avg_pool2d(film.flatten(0, 2)[:, None], 5, 1, 2).view_as(film)
    other, _ = render(replace(scene, shape_B=(scene.shape_B + 1) % 4))
    assert look(soft, scene).max() < look(film, scene).min() - 3
    assert look(other, scene).max() < look(film, scene).min() - 3
