"""Settings of published projects and our own best ones, by name, for `--preset`."""

from typing import Any

from options.fields import DIFFAUGMENT_ALL

Preset = tuple[str, dict[str, Any]]  # a line for `--preset list`, and the options

# Shared by several presets: how the course projects train, their cats, Leo's faces, and their models for 256x256.
_COURSE: dict[str, Any] = dict(lr=2e-4, ema_decay=0.0)
_CATS: dict[str, Any] = dict(X="cat/grumpifyAprocessed", Y="cat/grumpifyBprocessed")
_FACES: dict[str, Any] = dict(
    _COURSE, data_aug="deluxe", use_diffaug=DIFFAUGMENT_ALL, disc="patch", spectral_norm=True, lr_policy="linear"
)
_FEW: dict[str, Any] = dict(disc="patch", gan_mode="vanilla", use_diffaug="color,translation", lr=1e-3, ema_decay=0.998)
_LARGE: dict[str, Any] = dict(
    image_size=256,
    data_aug="deluxe",
    disc="patch",
    use_cycle_consistency_loss=True,
    use_identity_loss=True,
    lambda_cycle=5.0,
)

# fmt: off
DCGAN_PRESETS: dict[str, Preset] = {
    "toy_cats": (
        "the embedded toy cats, used without --data: as few_images, with Adam for D, a fine layer, shorter parts of z, "
        "codes in [-1, 1], smaller weights of codes and mode seeking, a moving average of 0.99, 1,250 "
        "iterations",
        dict(_FEW, self_modulation=True, split_noise=True, noise_size=48, fine_channels=16, lambda_codes=2.0,
             lambda_modes=0.15, ema_decay=0.99, train_iters=1250)),
    "hasey": (
        "Hasey: grumpy cats, transposed convolutions, batch norm, deluxe, 100 epochs",
        dict(_COURSE, data="cat/grumpifyBprocessed", upsample="deconv", norm="batch", data_aug="deluxe",
             num_epochs=100)),
    "agrawal": (
        "Agrawal, 16-726 HW3: grumpy cats, instance norm, deluxe with autocontrast, DiffAugment, 6,400 iterations",
        dict(_COURSE, data="cat/grumpifyBprocessed", data_aug="deluxe_autocontrast", use_diffaug=DIFFAUGMENT_ALL,
             train_iters=6400)),
    "grumpycat64": (
        "Leo: grumpy cats, basic, 500 epochs; add --data_aug deluxe, --use_diffaug, --spectral_norm for the rest "
        "of the table",
        dict(_COURSE, data="cat/grumpifyBprocessed", num_epochs=500)),
    "grumpycat64_best": (
        "the best that we found so far for the same cats: patch, DiffAugment and our defaults, 6,400 iterations",
        dict(data="cat/grumpifyBprocessed", disc="patch", use_diffaug=DIFFAUGMENT_ALL, train_iters=6400)),
    "few_images": (
        "our best for a folder of fewer than a thousand images of one kind: patch, Muon for D, self-modulation, z in "
        "parts, a code in [-0.5, 0.5] for each image, mode seeking, cross-entropy, DiffAugment without cutout, a rate "
        "of 1e-3, 6,400 iterations",
        dict(_FEW, d_optimizer="muon", self_modulation=True, split_noise=True, noise_size=80, lambda_codes=5.0,
             code_range=0.5, lambda_modes=0.3, train_iters=6400)),
    "leo": (
        "Leo: the faces of one person (dataset.py faces), patch, spectral norm, deluxe, DiffAugment, 5,000 epochs, "
        "rate constant for half, then linear to 0",
        dict(_FACES, data="faces/me", num_epochs=5000)),
    "grumpycat256": (
        "Leo: the same at 256x256, deluxe, DiffAugment",
        dict(_COURSE, data="cat/grumpifyBprocessed", image_size=256, data_aug="deluxe",
             use_diffaug=DIFFAUGMENT_ALL, num_epochs=500)),
}

CYCLEGAN_PRESETS: dict[str, Preset] = {
    "toy_cats": (
        "the embedded toy cats, used without images: as few_images, with Adam for D, a cycle loss of 10, the identity "
        "loss and a moving average of 0.99, 800 iterations",
        dict(_FEW, use_cycle_consistency_loss=True, use_identity_loss=True, ema_decay=0.99, train_iters=800)),
    "hasey": (
        "Hasey: gray and grumpy cats, transposed convolutions, batch norm, MSE cycle loss, 100,000 iterations",
        dict(_COURSE, **_CATS, upsample="deconv", norm="batch", data_aug="deluxe",
             use_cycle_consistency_loss=True, cycle_loss="L2", train_iters=100_000)),
    "agrawal": (
        "Agrawal, 16-726 HW3: cats, deluxe with autocontrast, patch, cycle, DiffAugment, 10,000 iterations",
        dict(_COURSE, **_CATS, data_aug="deluxe_autocontrast", disc="patch", use_cycle_consistency_loss=True,
             use_diffaug=DIFFAUGMENT_ALL)),
    "grumpycat64": (
        "Leo: cats, patch, cycle, 10,000 iterations; --disc dc, --use_identity_loss, --cycle_loss SSIM, "
        "--use_diffaug, --spectral_norm for the rest of the table",
        dict(_COURSE, **_CATS, data_aug="deluxe", disc="patch", use_cycle_consistency_loss=True)),
    "grumpycat64_best": (
        "our best so far for the same cats: patch, cycle, DiffAugment and our defaults, 3,000 iterations",
        dict(_CATS, disc="patch", use_cycle_consistency_loss=True, use_diffaug=DIFFAUGMENT_ALL, train_iters=3000)),
    "few_images": (
        "our best for two folders of fewer than a thousand images: patch, Muon for D, a cycle loss of 100, "
        "cross-entropy, DiffAugment without cutout, a rate of 1e-3, 3,000 iterations",
        dict(_FEW, d_optimizer="muon", use_cycle_consistency_loss=True, lambda_cycle=100.0, train_iters=3000)),
    "apple2orange64": (
        "Leo: the same for apples and oranges",
        dict(_COURSE, data="apple2orange", data_aug="deluxe", disc="patch", use_cycle_consistency_loss=True)),
    "yosemite128": (
        "tooth2: summer to winter at 128x128, 6 residual blocks of two convolutions, batch norm, L1 cycle loss",
        dict(_COURSE, data="summer2winter_yosemite", image_size=128, disc="patch94", n_downsample=3,
             n_res_blocks=6, res_block_convs=2, upsample="deconv", norm="batch", g_conv_dim=64, d_conv_dim=64,
             use_cycle_consistency_loss=True)),
    "monet256": (
        "Monet CycleGAN: 256x256, batch 1, ResNet with 9 blocks, 70x70 patches, cycle and identity, 80/20 split; our "
        "choice: 60,000 iterations at a constant rate, no crops and flips; the rest is as in cyclegan_paper",
        dict(_COURSE, X="gan-getting-started/monet_jpg", Y="gan-getting-started/photo_jpg", test_split=0.2,
             image_size=256, batch_size=1, gen="resnet_9blocks", upsample="deconv", disc="patch70", g_conv_dim=64,
             d_conv_dim=64, init_type="normal", pool_size=50, use_cycle_consistency_loss=True,
             use_identity_loss=True, train_iters=60_000)),
    "cyclegan_paper": (
        "the CycleGAN authors' defaults: 256x256 crops of 286x286, batch 1, ResNet with 9 blocks, 70x70 patches, cycle "
        "and identity, 266,800 iterations (200 epochs of horse2zebra), rate constant for half, then linear to 0",
        dict(data="horse2zebra", image_size=256, data_aug="paper", batch_size=1, gen="resnet_9blocks",
             upsample="deconv", disc="patch70", g_conv_dim=64, d_conv_dim=64, norm="instance", init_type="normal",
             gan_mode="lsgan", pool_size=50, use_cycle_consistency_loss=True, cycle_loss="L1", lambda_cycle=10.0,
             use_identity_loss=True, lambda_identity=5.0, lr=2e-4, beta1=0.5, beta2=0.999, lr_policy="linear",
             ema_decay=0.0, train_iters=266_800)),
    "leo": (
        "Leo: the faces of two persons (dataset.py faces), patch, cycle, spectral norm, deluxe, DiffAugment, 30,000 "
        "iterations, rate constant for half, then linear to 0",
        dict(_FACES, X="faces/me", Y="faces/other", use_cycle_consistency_loss=True, train_iters=30_000)),
    "cats256": (
        "Leo: cats at 256x256, patch, cycle and identity, lambda 5",
        dict(_COURSE, **_CATS, **_LARGE)),
    "apple2orange256": (
        "Leo: the same for apples and oranges",
        dict(_COURSE, data="apple2orange", **_LARGE)),
}
# fmt: on
