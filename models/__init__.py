"""Networks and what surrounds them: CLIP features, GLIDE, noised CLIP, diffusion, training, sampling, the regurgitation check."""
