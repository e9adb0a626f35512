"""Masks of single weights: patterns that hardware can use, chosen by the same quadratic program.

pattern     N:M patterns along the inputs, one mask for each output or for blocks of outputs
layer       a layer's N:M problem: one small `Problem` with blocks for each mask, solved by any method, or by a rule
rules       magnitude, Wanda's product, SparseGPT's sequence
depthwise   balanced patterns of depthwise convolutions: equally many weights in every tile of channels
"""
